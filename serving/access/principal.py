"""Who calls and what it may do. Every rule of permission stands here; nothing is read, nothing is decoded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from featurestore.errors import NotFoundError, PermissionDenied


@dataclass(frozen=True)
class Names:
    """Names of services or views; `*` stands for any characters, `?` for one."""

    patterns: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return self._expression.match(name) is not None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        # Of no patterns at all: one that nothing matches.
        return re.compile("|".join(map(translate, self.patterns)) or r"(?!)")


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What somebody may do; several add up."""

    #: Feature services that may be read and described.
    read: Names = Names()
    #: Views, of every version, whose features may be read one by one, and whose freshness may be asked for.
    views: Names = Names()
    #: Views, of every version, that rows may be pushed to.
    push: Names = Names()
    #: Whether the process itself may be looked into: reflection, metrics.
    operate: bool = False

    def __or__(self, other: Grant) -> Grant:
        return Grant(
            read=Names(self.read.patterns + other.read.patterns),
            views=Names(self.views.patterns + other.views.patterns),
            push=Names(self.push.patterns + other.push.patterns),
            operate=self.operate or other.operate,
        )


@dataclass(frozen=True)
class Principal:
    """A caller that is known, with its grants. Each `require_...` raises PermissionDenied with the way out."""

    name: str
    grant: Grant

    def require_read(self, service: str, features: Sequence[str] = ()) -> None:
        """May it read this service; or, where none is named, these features (`view:field`, `view@version:field`)?

        To ask for a description is to read. A list of features needs each of its views.
        """
        if service:
            if service not in self.grant.read:
                raise self._denied("read feature service", service, "read")
            return
        self.require_views(feature.partition(":")[0] for feature in features)

    def require_views(self, views: Iterable[str]) -> None:
        """May it read these views (`name` or `name@version`) outside of services, and ask for their freshness?"""
        for name in dict.fromkeys(map(_unversioned, views)):
            if name not in self.grant.views:
                raise self._denied("read feature view", name, "views")

    def require_push(self, view: str) -> None:
        """May it push rows to this view (`name` or `name@version`)?"""
        if (name := _unversioned(view)) not in self.grant.push:
            raise self._denied("push to feature view", name, "push")

    def require_operate(self) -> None:
        """May it look into the process: reflection, metrics?"""
        if not self.grant.operate:
            raise PermissionDenied(
                f"{self.name} may not look into the serving process; "
                "ask its operator for `operate = true` in the file of grants"
            )

    def discreet(self, error: NotFoundError) -> NotFoundError:
        """The error without names of services and views that this principal may not know of."""
        match error.kind:
            case "feature service":
                known = [name for name in error.known if name in self.grant.read]
            case "feature view":
                known = [ref for ref in error.known if _unversioned(ref) in self.grant.views]
            case _:
                return error
        return NotFoundError(error.kind, error.name, known)

    def _denied(self, what: str, name: str, grant: str) -> PermissionDenied:
        return PermissionDenied(
            f"{self.name} may not {what} {name[:100]!r}; "
            f"ask the operator of the serving process to add it to `{grant}` in the file of grants"
        )


_ALL = Names(("*",))
ANYONE = Principal("anyone", Grant(read=_ALL, views=_ALL, push=_ALL, operate=True))
"""Every caller of a server without [auth], and callers inside the process."""


def _unversioned(view: str) -> str:
    return view.partition("@")[0]


_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Whoever sent the request that this task answers; LookupError outside of one, so that nobody is let in unseen.

    Threads of an executor do not see it: take it on the event loop and hand it on.
    """
    return _caller.get()


@contextmanager
def answering(principal: Principal) -> Iterator[None]:
    """Within, `caller()` is `principal`."""
    token = _caller.set(principal)
    try:
        yield
    finally:
        _caller.reset(token)
