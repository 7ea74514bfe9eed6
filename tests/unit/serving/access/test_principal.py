"""What a principal may do: all that was granted, and nothing else."""

from __future__ import annotations

import asyncio
import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import NotFoundError, PermissionDenied
from serving.access.principal import ANYONE, Grant, Names, Principal, answering, caller


def principal(read: list[str] = [], views: list[str] = [], push: list[str] = []) -> Principal:  # noqa: B006
    return Principal("token pricing", Grant(read=names(read), views=names(views), push=names(push)))


def names(patterns: list[str]) -> Names:
    return Names(tuple(patterns))


def test_nothing_is_granted_by_default() -> None:
    nobody = principal()
    for ask in (
        lambda: nobody.require_read("s"),
        lambda: nobody.require_read("", ["v:f"]),
        lambda: nobody.require_views(["v"]),
        lambda: nobody.require_push("v"),
        nobody.require_operate,
    ):
        with pytest.raises(PermissionDenied, match="token pricing may not .* operator"):
            ask()


def test_anyone_may_do_everything() -> None:
    ANYONE.require_read("s")
    ANYONE.require_read("", ["v@2:f"])
    ANYONE.require_push("v@2")
    ANYONE.require_operate()


def test_a_grant_on_one_thing_is_none_on_another() -> None:
    reader, viewer, pusher = principal(read=["a"]), principal(views=["a"]), principal(push=["a"])
    reader.require_read("a")
    viewer.require_read("", ["a:f"])
    pusher.require_push("a")
    for ask in (
        lambda: reader.require_read("", ["a:f"]),
        lambda: reader.require_push("a"),
        lambda: viewer.require_read("a"),
        lambda: viewer.require_push("a"),
        lambda: pusher.require_read("a"),
        lambda: pusher.require_views(["a"]),
        lambda: reader.require_read("ab"),
        lambda: reader.require_read("A"),
        lambda: reader.require_read("a\n"),
    ):
        with pytest.raises(PermissionDenied):
            ask()


def test_a_list_of_features_needs_every_view_of_whatever_version() -> None:
    viewer = principal(views=["weather", "delay*"])
    viewer.require_read("", ["weather:temp", "weather@7:wind", "delays@2:delay"])
    with pytest.raises(PermissionDenied, match="may not read feature view 'planes'; .* `views`"):
        viewer.require_read("", ["weather:temp", "planes:seats"])


def test_a_malformed_feature_is_granted_only_where_its_view_is() -> None:
    viewer = principal(views=["weather"])
    for feature in ("", ":temp", "@1:temp", "weatherx", "*:temp", "weather :temp", "planes:weather:temp"):
        with pytest.raises(PermissionDenied):
            viewer.require_read("", [feature])


@given(st.text("ab_*?", min_size=1, max_size=6), st.text("ab_", max_size=6))
def test_names_match_as_file_names_do(pattern: str, name: str) -> None:
    assert (name in Names((pattern,))) == fnmatch.fnmatchcase(name, pattern)


def test_grants_add_up() -> None:
    both = Grant(read=Names(("a",))) | Grant(read=Names(("b*",)), operate=True)
    assert all(name in both.read for name in ("a", "b", "bc"))
    assert "c" not in both.read
    assert both.operate


def test_a_refusal_names_what_the_caller_may_know_only() -> None:
    some = principal(read=["fare_*"], views=["weather"])
    service = some.discreet(NotFoundError("feature service", "fare_x", ["fare_now", "secret"]))
    view = some.discreet(NotFoundError("feature view", "weather", ["weather@2", "salaries@1"]))
    assert str(service) == "no feature service named 'fare_x'; did you mean 'fare_now'? known: fare_now"
    assert "salaries" not in str(view)
    assert "weather@2" in str(view)
    field = NotFoundError("field of weather@2", "x", ["temp"])
    assert some.discreet(field) is field


def test_nobody_calls_outside_of_a_request() -> None:
    with pytest.raises(LookupError):
        caller()

    async def both() -> tuple[Principal, Principal]:
        async def one(who: Principal) -> Principal:
            with answering(who):
                await asyncio.sleep(0)
                return caller()

        return await asyncio.gather(one(ANYONE), one(principal()))

    assert [*asyncio.run(both())] == [ANYONE, principal()]
    with pytest.raises(LookupError):
        caller()
