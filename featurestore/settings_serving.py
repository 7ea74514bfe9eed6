"""Settings of the serving process: where it listens, its bounds, and what it tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr, StringConstraints, field_validator, model_validator
from pydantic import Field as Setting

from featurestore.settings_section import OfFiles, Positive, Section, listed

_Port = Annotated[int, Setting(ge=0, le=65535)]


class ServingSettings(Section):
    """The serving process."""

    host: str = "127.0.0.1"
    #: 0 takes any free port and prints it.
    port: _Port = 6566
    #: Most rows of one request; larger ones are refused.
    max_keys: Positive = 10_000
    #: Most features named one by one in a request, and most bytes of a request or reply.
    max_features: Positive = 1_000
    max_message_bytes: Positive = 64 << 20
    #: Processes that share the port.
    workers: Annotated[int, Setting(ge=1, le=256)] = 1
    #: Requests that a worker has at work, and that wait there; further ones are turned away (RESOURCE_EXHAUSTED).
    #: More would only wait longer: the worker answers one after the other.
    in_flight_max: Positive = 8
    queue_max: Annotated[int, Setting(ge=0)] = 16
    #: Longest wait for the online store; then requests fail with UNAVAILABLE.
    store_timeout_s: float = Setting(default=1.0, gt=0)
    #: Longest time for open requests to finish after SIGTERM.
    drain_s: float = Setting(default=10.0, ge=0)


class MetricsSettings(Section):
    """Prometheus metrics of the serving process."""

    host: str = "127.0.0.1"
    #: Port of /metrics; 0 takes any free one and logs it. None: no port of its own (REST has /metrics as well).
    port: _Port | None = None


class TracingSettings(Section):
    """OpenTelemetry traces of the serving process."""

    #: A collector that takes OTLP over gRPC: http://host:4317, or https://host:4317 for TLS. None: no traces.
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^/@\s]+$")] | None = None
    #: Share of the requests that is traced; those that bring a `traceparent` are traced as it says.
    ratio: float = Setting(default=0.01, ge=0, le=1)
    #: Sent as `authorization` with every export, for collectors that want a token.
    authorization: SecretStr | None = None


class LoggingSettings(Section):
    """Log lines of the serving process, on stderr."""

    #: json: one object a line.
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: Requests that take longer get a line that says where their time went.
    slow_request_s: float = Setting(default=1.0, gt=0)


class RestSettings(Section):
    """The REST gateway of the serving process."""

    host: str = "127.0.0.1"
    #: 0 takes any free port and logs it. None: no gateway.
    port: _Port | None = None


class InferenceSettings(OfFiles):
    """Who runs models for Predict: `featurestore sidecar`, or another server of the Open Inference Protocol."""

    #: host:port or unix:///path. None: no Predict.
    address: str | None = None
    #: Longest wait for the model.
    timeout_s: float = Setting(default=1.0, gt=0)
    #: Further tries when nobody could be reached; never of a request that was sent.
    retries: Annotated[int, Setting(ge=0, le=20)] = 2
    #: Feed models that do not say what they were trained on.
    unsigned: bool = False
    #: PEM file: authorities of the server's certificate. With it the address is spoken to over TLS.
    tls_ca: Path | None = None
    #: PEM files: the certificate that is shown there and its key, where clients must have one (mTLS).
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; set both, or neither")
        if self.tls_cert is not None and self.tls_ca is None:
            raise ValueError("a certificate is shown over TLS only; set tls_ca to the authorities of the server's, too")
        if self.tls_ca is not None and (self.address or "").startswith("unix:"):
            raise ValueError(
                "a unix socket is spoken to without TLS, who may open its file may ask; remove tls_ca, tls_cert and "
                "tls_key, or set address to host:port"
            )
        return self


class FreshnessSettings(Section):
    """Who is told when a promise of freshness is broken, and when it holds again."""

    #: http:// or https:// address that gets a POST; a secret, since many hold a token. None: nobody is told.
    webhook: SecretStr | None = None
    #: Key of the HMAC-SHA256 that signs each body (X-Featurestore-Signature).
    webhook_secret: SecretStr | None = None
    #: Longest delivery.
    timeout_s: float = Setting(default=5.0, gt=0, le=300)
    #: How often `serve` looks; a failed delivery is tried again after this time, then after twice as long, ...
    check_s: float = Setting(default=15.0, gt=0, le=86_400)
    #: Further tries of a failed delivery before it is given up.
    retries: int = Setting(default=5, ge=0, le=20)

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _require_address(value.get_secret_value())
        return value


def _require_address(url: str) -> None:
    """ValueError, without the address, unless it can be called as it stands."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(character <= " " for character in url):
        raise ValueError("this is no http:// or https:// address, as in https://alerts.example.com/hook")
    if "@" in parts.netloc:
        raise ValueError("a user name or password in the address is not sent; sign with freshness.webhook_secret")


class ServedLogSettings(Section):
    """What is recorded of replies, for `verify --served`."""

    #: Folder of the files, one a worker at a time; None: nothing is recorded.
    path: Path | None = None
    #: Which share of the reply rows: those whose keys hash below it, so the same entities every time.
    sample: float = Setting(default=0.01, gt=0, le=1)
    #: Most bytes of the folder; the oldest files are removed.
    max_bytes: int = Setting(default=1 << 30, ge=1 << 20)
    #: Reply rows that may wait to be written; more are dropped, and counted in the log.
    queue_rows: Positive = 50_000


class NearCacheSettings(Section):
    """Rows that each worker keeps in memory."""

    #: Memory of one worker's cache; 0: none. Unset: 64 with Redis, none with SQLite, whose pages are cached already.
    megabytes: Annotated[int, Setting(ge=0)] | None = None
    #: A row is as new as the store's was at most so long ago.
    bound_s: float = Setting(default=1.0, gt=0, le=60)
    #: While the store is away: requests fail, or rows in the cache are served as STALE (unconfirmed).
    store_down: Literal["error", "serve"] = "error"
    #: How long after they were confirmed last.
    unconfirmed_max_s: float = Setting(default=60.0, gt=0)


class PreloadSettings(Section):
    """What a worker puts into its near cache before it takes requests."""

    #: In this order: hot (keys requested most, over restarts), recent (latest event times), file, all (what fits).
    policies: Annotated[tuple[Literal["hot", "recent", "file", "all"], ...], BeforeValidator(listed)] = ("hot",)
    #: Columns of join keys, for the policy `file`: .parquet, .csv or .arrow.
    keys_file: Path | None = None
    #: Where the hot keys are kept.
    folder: Path = Path("data/serving")
    #: A preload that takes longer is cut short.
    timeout_s: float = Setting(default=60.0, gt=0)
    #: When it fails: serve cold, or wait (not ready, without `timeout_s`) until it succeeds.
    on_failure: Literal["serve", "wait"] = "serve"

    @model_validator(mode="after")
    def _has_its_file(self) -> Self:
        if ("file" in self.policies) != (self.keys_file is not None):
            raise ValueError('the policy "file" and keys_file belong together; set both, or neither')
        return self
