"""What Postgres says when something is wrong, as errors of the project, with the way out; never a password."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors

from featurestore.errors import FeatureStoreError, StoreBusy, StoreError, StoreFull, StoreUnreachable


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a store lies, as messages name it; `section` is that of the settings that says so."""

    host: str
    port: str
    database: str
    user: str
    section: str = "offline"
    #: Of its tables, where the server's words leave it out.
    schema: str = ""

    @staticmethod
    def of(parameters: Mapping[str, Any], section: str, schema: str = "") -> Address:
        """From the parameters of a connection; libpq has defaults for those that lack."""
        user = str(parameters.get("user") or "the user of this process")
        return Address(
            host=str(parameters.get("host") or "localhost"),
            port=str(parameters.get("port") or "5432"),
            database=str(parameters.get("dbname") or user),
            user=user,
            section=section,
            schema=schema,
        )

    def __str__(self) -> str:
        return f"Postgres database {self.database!r} at {self.host}:{self.port}"


# ------------------------------------------------------------------ connecting

#: What the server or libpq says when a connection is refused -> the way out. A passing fault is worth waiting for.
_REFUSED: tuple[tuple[str, type[StoreError], str, bool], ...] = (
    ("starting up|in recovery mode|shutting down|not yet accepting", StoreUnreachable, "wait and run again", True),
    (
        "password authentication failed|no password supplied|empty password",
        StoreError,
        "set {section}.password ({variable}, or its _FILE) to the password of {user!r}",
        False,
    ),
    (
        "certificate|SSL|TLS",
        StoreError,
        "set sslmode and sslrootcert in {section}.url as the server's certificate asks",
        False,
    ),
    ("no pg_hba.conf entry|authentication failed", StoreError, "let its pg_hba.conf accept {user!r} from here", False),
    ('database ".*" does not exist', StoreError, "make it (CREATE DATABASE), or mend {section}.url", False),
    ('role ".*" does not exist', StoreError, "make it (CREATE ROLE ... LOGIN), or mend {section}.url", False),
    ("permission denied for database", StoreError, "let its owner run GRANT CONNECT to {user!r}", False),
    (
        "too many clients|remaining connection slots|too many connections",
        StoreBusy,
        "raise max_connections, or end idle connections",
        False,
    ),
    ("timeout|timed out", StoreUnreachable, "see that it runs and that no firewall stands between", False),
    ("resolve|translate host name|Name or service", StoreUnreachable, "mend the host in {section}.url", False),
)


def connect_fault(error: psycopg.OperationalError, address: Address) -> tuple[StoreError, bool]:
    """(our error, whether the fault may pass within seconds)."""
    says = _said(error)
    for pattern, kind, way_out, passing in _REFUSED:
        if re.search(pattern, says):
            variable = f"FEATURESTORE_{address.section.upper()}_PASSWORD"
            way_out = way_out.format(user=address.user, section=address.section, variable=variable)
            return kind(f"cannot use {address}: {says}; {way_out}"), passing
    return StoreUnreachable(f"cannot reach {address}: {says}; start it, or mend {address.section}.url"), False


def _said(error: psycopg.Error) -> str:
    """The last thing said: libpq lists its tries, each with the server's own words at the end of a line."""
    if (primary := error.diag.message_primary) is not None:
        return primary
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "FATAL" in line or "failed" in line), lines[-1] if lines else "")
    return re.sub(r"^.*?(FATAL:\s*|failed:\s*(?=\S))", "", said).removeprefix("FATAL:").strip() or said


# ------------------------------------------------------------------ working

_FULL = (errors.DiskFull, errors.OutOfMemory, errors.ConfigurationLimitExceeded, errors.FileNameTooLong)
_BUSY = (errors.LockNotAvailable, errors.DeadlockDetected, errors.TooManyConnections, errors.ObjectInUse)
_DAMAGED = (errors.DataCorrupted, errors.IndexCorrupted)
_ALTERED = (
    errors.UndefinedColumn,
    errors.UndefinedTable,
    errors.DatatypeMismatch,
    errors.UndefinedFunction,
    errors.InvalidSchemaName,
    errors.NotNullViolation,
    errors.UniqueViolation,
    errors.CheckViolation,
    errors.BadCopyFileFormat,
    errors.InvalidBinaryRepresentation,
    errors.CollationMismatch,
)


@contextmanager
def translated(address: Address, *, wait_s: float) -> Iterator[None]:
    """Errors of the driver that a user can act on, as errors of the project."""
    try:
        yield
    except FeatureStoreError:
        raise
    except psycopg.Error as error:
        fault = _fault(error, address, wait_s)
        if fault is None:
            raise
        raise fault from error


def _fault(error: psycopg.Error, address: Address, wait_s: float) -> StoreError | None:
    says = _said(error)
    match error:
        case errors.InsufficientPrivilege():
            return StoreError(f"{address}: {says}; let its owner run {_grant(says, address)}")
        case errors.LockNotAvailable():
            return StoreBusy(
                f"{address} is held by another session; waited {wait_s:g} s; let it finish, or raise "
                f"{address.section}.wait_s in featurestore.toml"
            )
        case _ if isinstance(error, _BUSY):
            return StoreBusy(f"{address} is busy: {says}; run again")
        case _ if isinstance(error, _FULL):
            return StoreFull(f"no space left for {address}: {says}; free space there and run again")
        case errors.ReadOnlySqlTransaction():
            return StoreError(f"{address} takes no writes: {says}; point {address.section}.url at the primary")
        case _ if isinstance(error, _DAMAGED):
            return StoreError(f"{address} cannot be read: {says}; restore it from a backup")
        case _ if isinstance(error, _ALTERED):
            return StoreError(
                f"{address} holds other tables than featurestore made: {says}; undo what was altered by "
                f"hand, or restore the table from a backup"
            )
        case errors.QueryCanceled() | errors.IdleInTransactionSessionTimeout():
            return StoreError(f"{address} ended the work: {says}; nothing of it was kept, run again with less at once")
        case _ if _is_lost(error):
            return StoreUnreachable(
                f"the connection to {address} was lost: {says}; run again, what was committed "
                f"stays and is not done twice"
            )
    return None


def _is_lost(error: psycopg.Error) -> bool:
    """Whether the server went away: it says so (class 08, 57P0x), or nobody says anything."""
    state = error.sqlstate or ""
    return state.startswith(("08", "57P")) or (isinstance(error, psycopg.OperationalError) and not state)


def _grant(says: str, address: Address) -> str:
    """The GRANT that lacks, from the words of the refusal."""
    found = re.search(r"(?:for|in) (database|schema|table|relation|sequence) \"?([\w.-]+)", says) or re.search(
        r"owner of (table|relation|index) \"?([\w.-]+)", says
    )
    kind, name = found.groups() if found else ("database", address.database)
    user, relation = f'"{address.user}"', f'"{address.schema}"."{name}"' if address.schema else f'"{name}"'
    if "owner of" in says:
        return f"ALTER TABLE {relation} OWNER TO {user}"
    if kind == "database":
        return f'GRANT CONNECT, CREATE, TEMPORARY ON DATABASE "{name}" TO {user}'
    if kind == "schema":
        return f'GRANT USAGE, CREATE ON SCHEMA "{name}" TO {user}'
    if kind == "sequence":
        return f"GRANT USAGE ON SEQUENCE {relation} TO {user}"
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {relation} TO {user}"
