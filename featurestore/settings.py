"""The settings of a repository: `featurestore.toml`, overridden by the environment, checked once and passed down.

Order, later wins: defaults; the file; `FEATURESTORE_PROJECT` and `FEATURESTORE_<SECTION>_<KEY>`; the same with `_FILE`,
which names a file that holds the value (for secrets). In the file, `key_file = "..."` does the same for `key`. Unknown
settings are refused. Paths are relative to the repository's folder.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic import Field as Setting

from featurestore.errors import ConfigError, suggest
from featurestore.settings_access import AuthSettings, TlsSettings, access_fault
from featurestore.settings_section import Positive as _Positive
from featurestore.settings_section import Section as _Section
from featurestore.settings_serving import (
    FreshnessSettings,
    InferenceSettings,
    LoggingSettings,
    MetricsSettings,
    NearCacheSettings,
    PreloadSettings,
    RestSettings,
    ServedLogSettings,
    ServingSettings,
    TracingSettings,
)

FILE_NAME = "featurestore.toml"
PREFIX = "FEATURESTORE_"
#: Schemas that every Postgres database has, beside those that begin with pg_.
POSTGRES_SCHEMAS = ("information_schema", "public")
#: Catalogs that every DuckDB connection has.
DUCKDB_CATALOGS = ("memory", "system", "temp")
#: Variables that are no settings: the clock (`--now`), tracebacks of defects, and failpoints of tests.
OTHER_VARIABLES = ("FEATURESTORE_NOW", "FEATURESTORE_DEBUG", "FEATURESTORE_FAILPOINT")

#: The password of an address.
_PASSWORD = re.compile(r"(?<=:)(?<!://)[^:@/]*(?=@)|(?<=[?&]password=)[^&]*")

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=63)]


class _OfKind(_Section):
    """A section whose settings depend on its `kind`; those of another kind are refused, not ignored."""

    #: Kind -> the settings that only it has.
    OWN: ClassVar[Mapping[str, frozenset[str]]] = {}
    #: Kind -> how its url looks.
    URL: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        kind = self.kind  # type: ignore[attr-defined]
        for other, own in self.OWN.items():
            if other != kind and (strange := sorted(self.model_fields_set & own)):
                raise ValueError(f'{", ".join(strange)} belong to kind = "{other}", this one is "{kind}"; remove them')
        if "url" in self.OWN[kind] and not getattr(self, "url", None):
            raise ValueError(f'kind = "{kind}" needs url, as in url = "{self.URL[kind]}"')
        return self

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Without the settings of other kinds."""
        strange = {name for other, own in self.OWN.items() if other != self.kind for name in own}  # type: ignore[attr-defined]
        yield from ((name, value) for name, value in super().__iter__() if name not in strange)


class RegistrySettings(_OfKind):
    """Where definitions and job state lie: in a SQLite file, or in a Postgres database that several hosts share."""

    OWN = {"sqlite": frozenset({"path"}), "postgres": frozenset({"url", "password"})}
    URL = {"postgres": "postgresql://user@host:5432/database"}

    kind: Literal["sqlite", "postgres"] = "sqlite"
    path: Path = Path("data/registry.db")
    #: As libpq takes it: postgresql://user@host:5432/database?sslmode=verify-full; best without a password.
    url: str = ""
    password: SecretStr | None = None
    #: Longest wait for another process that writes, or applies.
    wait_s: float = Setting(default=10.0, ge=0)
    #: A view that was read within so many days is removed only when forced; 0: readers hold no view.
    readers_days: float = Setting(default=30.0, ge=0, le=36_500)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OfflineSettings(_OfKind):
    """The offline store."""

    OWN = {"duckdb": frozenset({"path", "threads", "memory_limit"}), "postgres": frozenset({"url", "password"})}
    URL = {"postgres": "postgresql://user@host:5432/database"}

    kind: Literal["duckdb", "postgres"] = "duckdb"
    path: Path = Path("data/offline.duckdb")
    threads: _Positive = Setting(default_factory=_cores)
    #: Above this, DuckDB spills to disk beside its file.
    memory_limit: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$")] = "512MB"
    #: As libpq takes it: postgresql://user@host:5432/database?sslmode=verify-full; best without a password.
    url: str = ""
    password: SecretStr | None = None
    #: Longest wait for another process that holds the file, or a view.
    wait_s: float = Setting(default=10.0, ge=0)


class OnlineSettings(_OfKind):
    """The online store: a SQLite file, or a Redis server or Cluster."""

    OWN = {
        "sqlite": frozenset({"path"}),
        "redis": frozenset(
            {
                "url",
                "username",
                "password",
                "cluster",
                "tls_ca",
                "tls_cert",
                "tls_key",
                "allow_eviction",
                "timeout_s",
                "retries",
            }
        ),
    }
    URL = {"redis": "redis://host:6379/0"}

    kind: Literal["sqlite", "redis"] = "sqlite"
    path: Path = Path("data/online.db")
    #: redis://host:port/database, or rediss://... for TLS; user name and password have settings of their own.
    url: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    #: Whether `url` names a node of a Redis Cluster.
    cluster: bool = False
    #: PEM files: the authority that signed the server's certificate (default: the system's), and one's own.
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: Work with a server that may throw rows away when its memory is full.
    allow_eviction: bool = False
    #: Longest wait for a connection, and for each answer.
    timeout_s: float = Setting(default=5.0, gt=0)
    #: Further tries, after growing waits, of what failed for a passing reason.
    retries: int = Setting(default=3, ge=0, le=20)


class DefinitionsSettings(_Section):
    """Where the definitions are declared."""

    path: Path = Path("definitions")


class MaterializationSettings(_Section):
    """Load and publish."""

    #: Rows of one Arrow batch; memory and lost work of a killed job are bounded by it. These are two row groups of
    #: DuckDB: it writes whole ones at once (what is left over a second time), each with a thread of its own.
    batch_rows: _Positive = 245_760
    #: How long a silent writer keeps its view.
    lease_s: float = Setting(default=60.0, gt=0)
    #: Views loaded and published at a time; DuckDB, with one writer at a time, takes 1.
    parallel_views: Annotated[int, Setting(ge=1, le=64)] = 1


class PushSettings(_Section):
    """Rows that clients push."""

    #: Where pushed rows wait for DuckDB when they cannot wait in the online store, which is not SQLite.
    inbox_path: Path = Path("data/inbox.db")
    #: Rows of a file that `push` sends at a time.
    batch_rows: _Positive = 10_000


class QuarantineSettings(_Section):
    """What is kept of rows that break a contract."""

    #: Rows of a view; a load that would keep more is stopped.
    max_rows: _Positive = 1_000_000


class Settings(_Section):
    """All settings of one repository, paths made absolute."""

    #: The folder that holds featurestore.toml; paths of sources are relative to it.
    root: Path = Setting(exclude=True)
    project: _Name
    registry: RegistrySettings = RegistrySettings()
    offline: OfflineSettings = Setting(default_factory=OfflineSettings)
    online: OnlineSettings = OnlineSettings()
    definitions: DefinitionsSettings = DefinitionsSettings()
    serving: ServingSettings = ServingSettings()
    near_cache: NearCacheSettings = NearCacheSettings()
    preload: PreloadSettings = PreloadSettings()
    rest: RestSettings = RestSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    logging: LoggingSettings = LoggingSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    materialization: MaterializationSettings = MaterializationSettings()
    freshness: FreshnessSettings = FreshnessSettings()
    served_log: ServedLogSettings = ServedLogSettings()
    push: PushSettings = PushSettings()
    inference: InferenceSettings = InferenceSettings()
    quarantine: QuarantineSettings = QuarantineSettings()


SECTIONS: dict[str, type[_Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
}


def load_settings(root: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the repository in `root`; ConfigError names every fault at once."""
    root = root.absolute()
    faults: list[str] = []
    values = _from_file(root, faults)
    _merge(values, _from_environment(os.environ if environ is None else environ, root, faults))
    if faults:
        raise ConfigError(_listed(faults))
    try:
        settings = Settings.model_validate({**values, "root": root})
    except ValidationError as error:
        raise ConfigError(_listed([_fault(detail) for detail in error.errors()])) from error
    _require_own_schema(settings)
    _require_parallel(settings)
    _require_no_login(settings.online)
    if fault := access_fault(settings.auth, settings.tls):
        raise ConfigError(f"{fault} ({FILE_NAME})")
    return _absolute(settings)


def _require_no_login(online: OnlineSettings) -> None:
    """An address is shown and logged."""
    if "@" in (online.url or ""):
        raise ConfigError(
            "online.url holds a user name or a password, which `featurestore config` would show; move them to "
            "online.username and online.password (or FEATURESTORE_ONLINE_PASSWORD_FILE)"
        )


def _require_parallel(settings: Settings) -> None:
    views = settings.materialization.parallel_views
    if views > 1 and settings.offline.kind == "duckdb":
        raise ConfigError(
            f"materialization.parallel_views = {views}: DuckDB lets one writer in at a time; set it to 1, or keep "
            'history in Postgres ([offline] kind = "postgres")'
        )


def _require_own_schema(settings: Settings) -> None:
    """DuckDB names a file's catalog after the file, and cannot tell it from a schema of the same name; Postgres keeps
    some schemas to itself."""
    if settings.offline.kind == "postgres":
        if settings.project.lower().startswith("pg_") or settings.project.lower() in POSTGRES_SCHEMAS:
            raise ConfigError(f"project {settings.project!r} has the name of a schema of Postgres; name it otherwise")
        return
    catalogs = {settings.offline.path.stem.lower(), *DUCKDB_CATALOGS}
    if settings.project.lower() in catalogs:
        raise ConfigError(
            f"project {settings.project!r} has the name of a DuckDB catalog (those of {settings.offline.path} are: "
            f"{', '.join(sorted(catalogs))}); name the file of offline.path or the project otherwise"
        )


def shown(section: BaseModel) -> dict[str, Any]:
    """The settings as plain JSON, secrets masked; paths inside the repository relative to it."""
    root = getattr(section, "root", None)
    return {name: _shown(value, root) for name, value in section if name != "root"}


def _shown(value: Any, root: Path | None) -> Any:
    match value:
        case BaseModel():
            return {name: _shown(inner, root) for name, inner in value}
        case SecretStr():
            return str(value)
        case str() if "://" in value:
            return _PASSWORD.sub("**********", value)
        case Path():
            return (value.relative_to(root) if root and value.is_relative_to(root) else value).as_posix()
    return value


# ------------------------------------------------------------------ the file


def _from_file(root: Path, faults: list[str]) -> dict[str, Any]:
    path = root / FILE_NAME
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no {FILE_NAME} in {root}; go to a repository (or name it with -C DIR), or make one with "
            "`featurestore init DIR`"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; mend that line") from error
    _known(document, faults)
    if isinstance(document.get("project_file"), str):
        document["project"] = _content(root, document.pop("project_file"), FILE_NAME, faults)
    for name in SECTIONS:
        if isinstance(section := document.get(name), dict):
            document[name] = _resolved(section, name, root, faults)
    return document


def _known(document: dict[str, Any], faults: list[str]) -> None:
    for name in list(document):
        if name not in ("project", "project_file", *SECTIONS):
            faults.append(f"{FILE_NAME}: unknown setting {name!r}{suggest(name, ['project', *SECTIONS])}")
            del document[name]


def _resolved(section: dict[str, Any], name: str, root: Path, faults: list[str]) -> dict[str, Any]:
    """The section with `key_file` replaced by `key`, unknown keys reported."""
    known = list(SECTIONS[name].model_fields)
    resolved: dict[str, Any] = {}
    for key, value in section.items():
        plain = key.removesuffix("_file")
        if key in known:
            resolved[key] = value
        elif plain in known and plain in section:
            faults.append(f"{FILE_NAME}: [{name}] has both {plain} and {key}; keep one")
        elif plain in known:
            resolved[plain] = _content(root, str(value), f"{FILE_NAME}: [{name}] {key}", faults)
        else:
            faults.append(f"{FILE_NAME}: unknown setting {key!r} in [{name}]{suggest(key, known)}")
    return resolved


def _content(root: Path, path: str, where: str, faults: list[str]) -> str:
    try:
        return (root / path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{where}: {path} cannot be read ({error}); it should hold the value alone")
        return ""


# ------------------------------------------------------------------ the environment


def _from_environment(environ: Mapping[str, str], root: Path, faults: list[str]) -> dict[str, Any]:
    names = {f"{PREFIX}PROJECT": ("", "project")}
    for section, model in SECTIONS.items():
        names |= {f"{PREFIX}{section}_{key}".upper(): (section, key) for key in model.model_fields}
    values: dict[str, Any] = {}
    read_from_files: dict[str, Any] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable.startswith(OTHER_VARIABLES):
            continue
        if variable in names:
            _place(values, names[variable], text)
        elif (plain := variable.removesuffix("_FILE")) in names:
            _place(read_from_files, names[plain], _content(root, text, variable, faults))
        else:
            faults.append(f"environment: unknown setting {variable}{suggest(variable, list(names))}")
    _merge(values, read_from_files)
    return values


def _place(values: dict[str, Any], where: tuple[str, str], value: str) -> None:
    section, key = where
    (values.setdefault(section, {}) if section else values)[key] = value


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            values[name] |= value
        else:
            values[name] = value


# ------------------------------------------------------------------ checks


def _absolute(settings: Settings) -> Settings:
    def under_root(section: _Section) -> _Section:
        paths = {name: settings.root / value for name, value in section if isinstance(value, Path)}
        return section.model_copy(update=paths)

    return settings.model_copy(update={name: under_root(getattr(settings, name)) for name in SECTIONS})


def _fault(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "value_error" and len(detail["loc"]) == 1:
        # The input is the whole section, secrets included.
        return f"[{where}] {detail['msg'].removeprefix('Value error, ')} ({FILE_NAME})"
    if detail["type"] == "missing":
        return f'{where} is missing; add {where} = "my_{where}" to {FILE_NAME}'
    if where == "project":
        return (
            f"project {detail['input']!r}: letters, digits and _ only, a letter first, at most 63; "
            f"set project in {FILE_NAME} or {PREFIX}PROJECT"
        )
    given = "***" if detail["loc"][-1] in _secrets() else repr(detail["input"])
    return f"{where} = {given}: {detail['msg']}; set it in {FILE_NAME} or {_variable(detail['loc'])}"


def _secrets() -> set[str]:
    """Settings whose values never stand in a message."""
    return {
        name
        for section in SECTIONS.values()
        for name, setting in section.model_fields.items()
        if "SecretStr" in str(setting.annotation)
    }


def _variable(location: tuple[int | str, ...]) -> str:
    return PREFIX + "_".join(str(part) for part in location[:2]).upper()


def _listed(faults: list[str]) -> str:
    return faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} problems in the settings:", *faults])
