"""What `serve` hands to the serving process, out of the settings and the flags."""

from __future__ import annotations

from pathlib import Path

from featurestore.settings import Settings
from serving.access.certificates import inference_files
from serving.logs import LogOptions
from serving.served_log import ServedLogOptions
from serving.server import ServeOptions
from serving.sidecar import SidecarAccess
from serving.telemetry import TelemetryOptions, TracingOptions
from serving.warm_up import NearCacheOptions, PreloadOptions
from serving.wire import Limits

#: Of each worker, where the settings say nothing and the store is another process.
NEAR_CACHE_MB = 64


def serve_options(
    settings: Settings, host: str, port: int, rest_port: int | None, metrics_folder: Path | None
) -> ServeOptions:
    """Options of one process; with a folder for its numbers it is one of several workers on the port."""
    serving = settings.serving
    return ServeOptions(
        host=host,
        port=port,
        worker=metrics_folder is not None,
        limits=Limits(
            rows_max=serving.max_keys,
            features_max=serving.max_features,
            message_bytes_max=serving.max_message_bytes,
        ),
        in_flight_max=serving.in_flight_max,
        queue_max=serving.queue_max,
        store_timeout_s=serving.store_timeout_s,
        near_cache=_near_cache(settings),
        preload=PreloadOptions(
            policies=settings.preload.policies,
            keys_file=settings.preload.keys_file,
            folder=settings.preload.folder,
            timeout_s=settings.preload.timeout_s,
            required=settings.preload.on_failure == "wait",
        ),
        drain_s=serving.drain_s,
        auth=settings.auth,
        tls=settings.tls,
        telemetry=_telemetry(settings, metrics_folder),
        rest=None if rest_port is None else (settings.rest.host, rest_port),
        served_log=_served_log(settings),
        sidecar=_sidecar(settings),
    )


def _near_cache(settings: Settings) -> NearCacheOptions | None:
    near = settings.near_cache
    megabytes = near.megabytes
    if megabytes is None:
        megabytes = NEAR_CACHE_MB if settings.online.kind == "redis" else 0
    if not megabytes:
        return None
    unconfirmed_max_s = near.unconfirmed_max_s if near.store_down == "serve" else 0.0
    return NearCacheOptions(bytes_max=megabytes << 20, bound_s=near.bound_s, unconfirmed_max_s=unconfirmed_max_s)


def _served_log(settings: Settings) -> ServedLogOptions | None:
    log = settings.served_log
    if log.path is None:
        return None
    return ServedLogOptions(folder=log.path, sample=log.sample, max_bytes=log.max_bytes, queue_rows=log.queue_rows)


def _sidecar(settings: Settings) -> SidecarAccess | None:
    inference = settings.inference
    if inference.address is None:
        return None
    return SidecarAccess(
        address=inference.address,
        timeout_s=inference.timeout_s,
        retries=inference.retries,
        unsigned=inference.unsigned,
        tls=inference_files(inference, inference.address),
        message_bytes_max=settings.serving.max_message_bytes,
    )


def _telemetry(settings: Settings, metrics_folder: Path | None) -> TelemetryOptions:
    metrics, tracing, logging = settings.metrics, settings.tracing, settings.logging
    return TelemetryOptions(
        project=settings.project,
        logs=LogOptions(format=logging.format, level=logging.level, slow_s=logging.slow_request_s),
        tracing=None
        if tracing.endpoint is None
        else TracingOptions(
            endpoint=tracing.endpoint,
            ratio=tracing.ratio,
            authorization=tracing.authorization.get_secret_value() if tracing.authorization else None,
        ),
        metrics=None if metrics.port is None else (metrics.host, metrics.port),
        metrics_folder=metrics_folder,
    )
