"""The expectation of Great Expectations that says the same as a rule of a contract, or why none does.

Data that knows no Great Expectations. "The same" means: with rows in an Arrow-backed frame (`to_pandas`), the
expectation breaks on the very rows that the gate marks; tests/properties/test_expectations.py holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from featurestore.compiler.names import CREATED, EVENT
from featurestore.dtypes import FLOATS, INTEGERS, Decimal, String, Timestamp
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.ingest.rules import Rule, field_rules

#: Great Expectations reads bounds as float64. An int64 may be compared with a bound below this: past it two integers
#: become one float.
EXACT_INT_MAX = (1 << 53) - 1

NOT_NULL = "expect_column_values_to_not_be_null"
BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"
LENGTHS = "expect_column_value_lengths_to_be_between"

#: Rules of a history as a whole.
ORDER, VOLUME, LARGEST_GAP = "order", "volume", "largest_gap"
OF_HISTORY = (ORDER, VOLUME, LARGEST_GAP)

_BOUNDS = ("ge", "gt", "le", "lt")
_LENGTHS = ("min_length", "max_length")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A row of the table: `expectation` is the type in Great Expectations, None where no form is faithful."""

    rules: tuple[str, ...]
    fields: str
    expectation: str | None = None
    #: Where the form says the same, and where not; or why there is none.
    note: str
    fits: Callable[[Field, str], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """One rule of a view with its form, named as the gate names breaches: `column`:`rule`."""

    column: str
    rule: str
    #: What is so where the rule is broken.
    says: str
    form: Form
    on_violation: str
    #: The columns whose values show a breach.
    shows: tuple[str, ...] = ()
    #: Of the expectation, besides the column.
    arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`column:rule`."""
        return f"{self.column}:{self.rule}"


def column_rules(view: FeatureView) -> Iterator[tuple[Expected, Rule]]:
    """The rules of a view's columns: join keys and times are never null, fields keep what they declare."""
    for declared in (*_required(view), *view.schema):
        for rule in field_rules(declared):
            form = form_of(declared, rule.name)
            arguments = _ARGUMENTS[rule.name](declared) if form.expectation is not None else {}
            expected = Expected(
                column=declared.name,
                rule=rule.name,
                says=rule.says,
                form=form,
                on_violation=declared.on_violation or view.on_violation,
                shows=(declared.name,),
                arguments=arguments,
            )
            yield expected, rule


def history_expected(view: FeatureView, rule: str, says: str) -> Expected:
    """A rule of the history as a whole, which the store judges."""
    column = ", ".join(view.join_keys) if rule == ORDER else EVENT
    return Expected(column=column, rule=rule, says=says, form=row_form(rule), on_violation=view.on_violation)


def row_form(rule: str) -> Form:
    """The row of the table for a rule that is not of one field."""
    return next(form for form in FORMS if rule in form.rules)


def form_of(field: Field, rule: str) -> Form:
    """The first row of the table that speaks of this rule of this field."""
    return next(form for form in FORMS if rule in form.rules and form.fits(field, rule))


def _required(view: FeatureView) -> Iterator[Field]:
    times = (EVENT, CREATED) if view.has_created else (EVENT,)
    for name, dtype in {**view.join_keys, **dict.fromkeys(times, Timestamp)}.items():
        yield Field(name=name, dtype=dtype, nullable=False)


def _always(_field: Field, _rule: str) -> bool:
    return True


def _exact_integer(field: Field, rule: str) -> bool:
    bound = getattr(field, rule)
    return field.dtype in INTEGERS and isinstance(bound, int) and abs(bound) <= EXACT_INT_MAX


_ARGUMENTS: Mapping[str, Callable[[Field], dict[str, object]]] = {
    "not_null": lambda field: {},
    "ge": lambda field: {"min_value": field.ge},
    "gt": lambda field: {"min_value": field.gt, "strict_min": True},
    "le": lambda field: {"max_value": field.le},
    "lt": lambda field: {"max_value": field.lt, "strict_max": True},
    "allowed_values": lambda field: {"value_set": list(field.allowed_values or ())},
    "min_length": lambda field: {"min_value": field.min_length},
    "max_length": lambda field: {"max_value": field.max_length},
}

#: The first row that fits counts.
FORMS: tuple[Form, ...] = (
    Form(
        rules=("not_null",),
        fields="any but floats",
        expectation=NOT_NULL,
        note="The same everywhere.",
        fits=lambda field, rule: field.dtype not in FLOATS,
    ),
    Form(
        rules=("not_null",),
        fields="float32, float64",
        expectation=NOT_NULL,
        note="NumPy-backed frames take NaN for a null; SQL and Arrow-backed frames do not.",
        fits=_always,
    ),
    Form(
        rules=_BOUNDS,
        fields="int32, int64, bound within ±(2^53 - 1)",
        expectation=BETWEEN,
        note="The same everywhere.",
        fits=_exact_integer,
    ),
    Form(
        rules=_BOUNDS,
        fields="float32, float64 without allow_nan",
        expectation=BETWEEN,
        note="NaN breaks it; NumPy-backed frames take NaN for missing, and Postgres for the greatest number.",
        fits=lambda field, rule: field.dtype in FLOATS and not field.allow_nan,
    ),
    Form(
        rules=_BOUNDS,
        fields="float32, float64 with allow_nan",
        note="No expectation lets NaN pass a bound.",
        fits=lambda field, rule: field.dtype in FLOATS,
    ),
    Form(
        rules=_BOUNDS,
        fields="decimal, int64 with a greater bound",
        note="Great Expectations reads bounds as float64, which is not exact there.",
        fits=lambda field, rule: isinstance(field.dtype, Decimal) or field.dtype in INTEGERS,
    ),
    Form(
        rules=("allowed_values",),
        fields="string, int32, int64",
        expectation=IN_SET,
        note="Some databases ignore case; NumPy-backed frames with nulls round integers past 2^53.",
        fits=lambda field, rule: field.dtype == String or field.dtype in INTEGERS,
    ),
    Form(
        rules=("allowed_values",),
        fields="others",
        note="A suite is JSON, which holds few of these types exactly.",
        fits=_always,
    ),
    Form(
        rules=("pattern",),
        fields="string",
        note=r"A pattern is RE2 over the whole string; Python and SQL read \d, \w, $ and newlines in other ways.",
        fits=_always,
    ),
    Form(
        rules=_LENGTHS,
        fields="string",
        expectation=LENGTHS,
        note="Counts Unicode code points, as Postgres does; some databases count bytes.",
        fits=lambda field, rule: field.dtype == String,
    ),
    Form(
        rules=_LENGTHS,
        fields="bytes, lists",
        note="Great Expectations measures the text that Python prints for them.",
        fits=_always,
    ),
    Form(
        rules=("condition",),
        fields="conditions of a view",
        note="SQL means what the gate's engine makes of it; every database divides, rounds and casts in its own way.",
        fits=_always,
    ),
    Form(
        rules=("reference",),
        fields="references of a view",
        note="The other view's history is not in the batch.",
        fits=_always,
    ),
    Form(
        rules=("future",),
        fields="future_tolerance of a view",
        note="It depends on the clock; a suite holds constants.",
        fits=_always,
    ),
    Form(
        rules=("unique", ORDER),
        fields="the view",
        note="At the gate it is judged within a batch; over history by the order key, computed in the store.",
        fits=_always,
    ),
    Form(
        rules=(VOLUME, LARGEST_GAP),
        fields="the view",
        note="No expectation counts rows by windows of time; computed in the store.",
        fits=_always,
    ),
)
