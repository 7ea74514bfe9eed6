"""Names and order of a service's columns, the views it pins, and the keys several views ask for together."""

from __future__ import annotations

import pytest

from featurestore import FeatureService, FeatureView, Field, Float64, Int32, Int64, String
from featurestore.errors import InputError, NotFoundError
from featurestore.outputs import common_join_keys, pinned_views, service_of, service_outputs
from tests.fix_offline import make_view

LEG = make_view({"carrier": String}, {"delay": Int64, "late": Int64}, name="leg")
LEG2 = make_view({"carrier": String}, {"delay": Int64, "taxi": Float64}, name="leg", version=2)
GATE = make_view({"carrier": String}, {"delay": Int64}, name="gate", version=10)
VIEWS = {view.ref: view for view in (LEG, LEG2, GATE)}


def named(service: FeatureService, *, full: bool = False) -> list[tuple[str, str, str, float | None]]:
    outputs = service_outputs(service, VIEWS, full_feature_names=full)
    return [(output.name, output.view, output.field.name, output.fill) for output in outputs]


def test_columns_come_in_the_order_of_the_service_then_of_the_request() -> None:
    service = FeatureService(
        name="model",
        features=[LEG["late"], GATE.select_all().alias(delay="gate_delay").fill(delay=1), LEG["delay"]],
        request_fields=[Field(name="distance", dtype=Int32)],
    )

    assert named(service) == [
        ("late", "leg@1", "late", None),
        ("gate_delay", "gate@10", "delay", 1.0),
        ("delay", "leg@1", "delay", None),
        ("distance", "", "distance", None),
    ]
    assert list(pinned_views(service, VIEWS)) == ["leg@1", "gate@10"]


def test_full_feature_names_part_what_would_clash() -> None:
    service = FeatureService(name="model", features=[LEG["delay"], GATE["delay"]])

    with pytest.raises(InputError, match=r"'delay' \(from leg@1 and gate@10\).*alias.*full feature names"):
        named(service)
    assert [name for name, *_ in named(service, full=True)] == ["leg__delay", "gate__delay"]


def test_a_request_field_named_like_a_feature_is_refused() -> None:
    service = FeatureService(name="m", features=[LEG["delay"]], request_fields=[Field(name="delay", dtype=Int64)])

    with pytest.raises(InputError, match=r"'delay' \(from leg@1 and the request\)"):
        named(service)


def test_features_named_one_by_one_keep_their_order_and_take_the_highest_version() -> None:
    service = service_of(["gate:delay", "leg:taxi", "leg@1:late"], VIEWS)

    assert [(name, view) for name, view, *_ in named(service)] == [
        ("delay", "gate@10"),
        ("taxi", "leg@2"),
        ("late", "leg@1"),
    ]


def test_the_highest_version_is_a_number_not_a_text() -> None:
    ten = make_view({"carrier": String}, {"delay": Int64}, name="leg", version=10)

    assert named(service_of(["leg:delay"], VIEWS))[0][1] == "leg@2"
    assert service_of(["leg:delay"], {**VIEWS, ten.ref: ten}).selections[0].version == 10


@pytest.mark.parametrize(
    ("features", "kind", "says"),
    [
        ([], InputError, "no features are named"),
        (["delay"], InputError, "'delay' is not of the form view:field"),
        (["lag:delay"], NotFoundError, "'lag'"),
        (["leg@7:delay"], NotFoundError, "'leg@7'.*leg@1"),
        (["leg:dealy"], NotFoundError, "'dealy'; did you mean 'delay'"),
        (["leg@1:taxi"], NotFoundError, "leg@1 named 'taxi'"),
    ],
)
def test_what_nobody_declared_is_named_with_what_is(features: list[str], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        service_of(features, VIEWS)


def keyed(name: str, **keys: object) -> FeatureView:
    return make_view(keys, {"delay": Int64}, name=name)  # type: ignore[arg-type]


def test_integers_of_different_widths_meet_in_int64() -> None:
    narrow, wide = keyed("a", number=Int32, carrier=String), keyed("b", number=Int64)

    assert common_join_keys([narrow, wide]) == {"number": Int64, "carrier": String}
    assert common_join_keys([wide, narrow]) == {"number": Int64, "carrier": String}
    assert common_join_keys([narrow, narrow]) == {"number": Int32, "carrier": String}


def test_keys_of_one_name_and_different_kinds_are_refused() -> None:
    with pytest.raises(InputError, match=r"'number' is int32 in a@1 and string in b@1; ask for these views separately"):
        common_join_keys([keyed("a", number=Int32), keyed("b", number=String)])
