"""What goes wrong with a Redis server, in our words: which errors are worth another try, and what each means."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from redis import exceptions as redis_errors

from featurestore.errors import ConfigError, FeatureStoreError, StoreError, StoreFull, StoreUnreachable

#: What this module understands; anything else is a defect.
REDIS_ERRORS = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)

# May be over soon: a lost or slow connection, a failover, a moving slot, scripts that a restart forgot.
_PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.AskError,
    redis_errors.ReadOnlyError,
    redis_errors.NoScriptError,
    redis_errors.RedisClusterException,
)
#: Connection errors that another try does not mend.
_LASTING = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

PRIVILEGES = (
    "+evalsha +evalsha_ro +script|load +hmget +hset +hget +hlen +hexists +hdel +hscan +unlink +time +get +set +info"
)
CLUSTER_PRIVILEGES = "+cluster|slots +command +asking"
#: Without these, large writes go by script.
TRANSACTION_PRIVILEGES = "+watch +multi +exec"


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment; every call may be repeated."""
    if isinstance(error, _LASTING) or _tls_error(error) is not None:
        return False
    return isinstance(error, _PASSING) or str(error).startswith("BUSY ")  # somebody's script takes its time


def in_our_words(where: str, error: BaseException) -> FeatureStoreError:
    """The error to raise for `error`; `where` names the store, without its password."""
    said = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    if (fault := _tls_error(error)) is not None:
        return _tls_fault(where, fault)
    match error:
        case redis_errors.AuthenticationError() | redis_errors.AuthenticationWrongNumberOfArgsError():
            return ConfigError(
                f"{where}: user name or password is not accepted ({said}); set online.username and online.password, "
                "or let FEATURESTORE_ONLINE_PASSWORD_FILE name a file with the password"
            )
        case redis_errors.NoPermissionError():
            return _privilege_missing(where, said)
        case redis_errors.OutOfMemoryError():
            return StoreFull(
                f"{where}: no memory left ({said}); raise the server's maxmemory or drop views, then run this again"
            )
        case redis_errors.BusyLoadingError():
            return StoreUnreachable(f"{where}: still loading its data; try again when it is done")
        case redis_errors.ReadOnlyError():
            return StoreUnreachable(
                f"{where}: this is a replica, which cannot be written to; name the primary in online.url"
            )
        case redis_errors.ClusterError() | redis_errors.RedisClusterException() | redis_errors.AskError():
            return StoreUnreachable(f"{where}: the cluster does not serve every slot ({said}); mend it and try again")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError() | OSError():
            return StoreUnreachable(f"{where}: cannot be reached ({said}); {_way_there(where, said)}")
    return _answered(where, said)


def _answered(where: str, said: str) -> FeatureStoreError:
    if "ACL failure" in said or "The user executing the script" in said:  # how scripts are told, from and up to 7.0
        return _privilege_missing(where, said)
    if "WRONGTYPE" in said:
        return StoreError(
            f"{where}: a key that belongs to this store holds something else ({said}); another program writes under "
            "fs1:; remove its keys or give the store a database of its own, then publish again with --repair"
        )
    return StoreError(f"{where}: the server answered {said}")


def _way_there(where: str, said: str) -> str:
    if "rediss://" in where:
        return (
            "check that it runs, speaks TLS, and whether it wants a certificate of ours (online.tls_cert, "
            "online.tls_key)"
        )
    if "closed by server" in said or "reset by peer" in said:
        return "check that it runs, and whether it wants TLS (rediss:// in online.url)"
    return "check that it runs, and online.url"


def _privilege_missing(where: str, said: str) -> ConfigError:
    return ConfigError(
        f"{where}: the user lacks a privilege ({said}); grant it keys ~fs* and {PRIVILEGES}, on a cluster also "
        f"{CLUSTER_PRIVILEGES} (docs/online-format.md)"
    )


def _tls_fault(where: str, fault: ssl.SSLError) -> ConfigError:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return ConfigError(
            f"{where}: the server's certificate is not trusted ({fault.verify_message}); let online.tls_ca name the "
            "authority's certificate, and online.url the name that the certificate is for"
        )
    return ConfigError(
        f"{where}: TLS fails ({fault.reason or fault}); use rediss:// only with a server that speaks TLS, and check "
        "online.tls_ca, online.tls_cert and online.tls_key"
    )


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that led to this one. A connection cut under TLS is no fault of TLS."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return cause
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
