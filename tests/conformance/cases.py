"""The corpus read and checked: tests/conformance/*.yaml as cases. A malformed case is a CaseError that says where.

The format is described in docs/conformance.md; it knows no engine, so that no case can leave one out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from featurestore.clock import to_us
from featurestore.dtypes import DType, parse_dtype
from tests.conformance.texts import parse_duration_us, parse_local, parse_value, parse_zoned

FOLDER = Path(__file__).parent
STATUSES = ("PRESENT", "NULL", "NOT_FOUND", "EXPIRED")
COUNTS = ("added", "duplicates", "corrections", "ambiguous", "quarantined")
#: The ref of the view of a case that has only one.
ONLY_VIEW = "facts@1"
WHY_LENGTH_MIN = 30
#: A history's table is named after its case, and after its view too where there are several.
NAME_LENGTH_MAX = 54

T = TypeVar("T")


class CaseError(ValueError):
    """A file of the corpus is malformed: where, what, and what to write."""


@dataclass(frozen=True, kw_only=True)
class CaseField:
    """A field; it exists from arrival `since` on (counted from 1), older rows hold its `default`."""

    name: str
    dtype: DType
    default: Any = None
    since: int = 1


@dataclass(frozen=True, kw_only=True)
class CaseView:
    """One view of a case."""

    name: str
    version: int
    keys: Mapping[str, DType]
    fields: Sequence[CaseField]
    ttl_us: int | None
    created: bool
    timezone: str | None
    ambiguous: str | None

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def fields_at(self, arrival: int) -> list[CaseField]:
        """The fields that exist when the arrival of that number comes."""
        return [field for field in self.fields if field.since <= arrival]


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row as its source gives it; times are aware, or local where the view has a timezone."""

    keys: tuple[Any, ...]
    event: datetime
    created: datetime | None
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A batch of one view's rows; loaded and published from `at_us` to `acknowledged_us` where that matters."""

    number: int
    view: str
    rows: Sequence[SourceRow]
    counts: Mapping[str, int] | None
    at_us: int | None
    acknowledged_us: int | None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What one view answers; `values` holds every field where the status is PRESENT, else nothing."""

    status: str
    values: Mapping[str, Any]
    uncertain: bool = False


Answers = Mapping[str, Expected]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A spine row, and what each view (by ref) answers: known as created, from the event on, and as served."""

    keys: Mapping[str, Any]
    as_of_us: int
    expect: Answers
    expect_event: Answers | None
    as_served: Answers | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of the corpus."""

    file: str
    name: str
    why: str
    views: Mapping[str, CaseView]
    arrivals: Sequence[Arrival]
    spine: Sequence[Ask]

    @property
    def keys(self) -> dict[str, DType]:
        """The join keys of the spine: those of all views."""
        return {name: dtype for view in self.views.values() for name, dtype in view.keys.items()}


def table_name(case: str, view: CaseView) -> str:
    """The name a view of a case has in stores that hold many cases."""
    return case if view.ref == ONLY_VIEW else f"{case}_{view.name}"


def read_corpus(folder: Path = FOLDER) -> list[Case]:
    """All cases of a folder, by file and place; CaseError for the first that is malformed."""
    cases = [case for path in sorted(folder.glob("*.yaml")) for case in read_file(path)]
    files: dict[str, str] = {}
    for case in cases:
        if case.name in files:
            raise CaseError(f"{case.file}: case {case.name!r} stands in {files[case.name]} too; rename one of them")
        files[case.name] = case.file
    return cases


def read_file(path: Path) -> list[Case]:
    """The cases of one file."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _TextLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise CaseError(f"{path.name}: {error}") from error
    parts = Part(path.name, document).mapping(required=("theme", "cases"))
    parts["theme"].text()
    return [_case(path.name, part) for part in parts["cases"].items()]


class _TextLoader(yaml.SafeLoader):
    """Every scalar is a text, but plain `null`: no schema of YAML guesses what 1e3, no or 2013-12-01 may mean."""

    yaml_implicit_resolvers = {"n": [("tag:yaml.org,2002:null", re.compile(r"null\Z"))]}

    def construct_scalar(self, node: Any) -> Any:
        if node.style is None and node.value == "":
            raise yaml.constructor.ConstructorError(None, None, 'nothing is written; write null or ""', node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {repeated}", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Part:
    """A part of a file, and where it stands."""

    where: str
    value: Any

    def fault(self, what: str) -> CaseError:
        """The error of this part."""
        return CaseError(f"{self.where}: {what}")

    def mapping(self, required: Sequence[str] = (), optional: Sequence[str] | None = ()) -> dict[str, Part]:
        """The parts of a mapping by name; `optional=None` takes any name."""
        if not isinstance(self.value, dict):
            raise self.fault(f"{self.value!r} is no mapping")
        known = [*required, *(self.value if optional is None else optional)]
        for name in self.value:
            if name not in known:
                raise self.fault(f"unknown key {name!r}; known: {', '.join(known)}")
        for name in required:
            if name not in self.value:
                raise self.fault(f"lacks the key {name!r}")
        return {name: Part(f"{self.where}.{name}", value) for name, value in self.value.items()}

    def items(self) -> list[Part]:
        """The parts of a list."""
        if not isinstance(self.value, list):
            raise self.fault(f"{self.value!r} is no list")
        return [Part(f"{self.where}[{place}]", value) for place, value in enumerate(self.value)]

    def text(self, pattern: str = r"(?s).+") -> str:
        """A text of that form."""
        if not isinstance(self.value, str) or not re.fullmatch(pattern, self.value):
            raise self.fault(f"{self.value!r} does not have the form {pattern}")
        return self.value

    def read(self, parse: Callable[[str], T]) -> T:
        """What `parse` makes of the text."""
        text = self.text()
        try:
            return parse(text)
        except ValueError as error:
            raise self.fault(str(error)) from error

    def of_type(self, dtype: DType) -> Any:
        """A value of that type, None for null."""
        try:
            return parse_value(self.value, dtype)
        except ValueError as error:
            raise self.fault(str(error)) from error

    def yes(self) -> bool:
        """true or false."""
        return self.text("true|false") == "true"


def _case(file: str, part: Part) -> Case:
    parts = part.mapping(required=("name", "why", "history", "spine"), optional=("view", "views"))
    name = parts["name"].text("[a-z][a-z0-9_]+")
    parts = {key: Part(f"{file}: {name}: {key}", inner.value) for key, inner in parts.items()}
    why = " ".join(parts["why"].text().split())
    if len(why) < WHY_LENGTH_MIN:
        raise parts["why"].fault(f"{why!r} explains nothing; say in a sentence what the case shows")
    views = _views(Part(f"{file}: {name}", part.value), parts)
    if any(len(table_name(name, view)) > NAME_LENGTH_MAX for view in views.values()):
        raise parts["name"].fault(f"with the name of its view it has more than {NAME_LENGTH_MAX} characters")
    arrivals = list(_arrivals(parts["history"].mapping(required=("arrivals",))["arrivals"], views))
    spine = [_ask(ask, views, arrivals) for ask in parts["spine"].items()]
    if not spine:
        raise parts["spine"].fault("is empty; a case asks something")
    return Case(file=file, name=name, why=why, views=views, arrivals=arrivals, spine=spine)


def _views(case: Part, parts: Mapping[str, Part]) -> dict[str, CaseView]:
    if ("view" in parts) == ("views" in parts):
        raise case.fault("has either view or views, one of the two")
    if "view" in parts:
        return {ONLY_VIEW: _view(ONLY_VIEW, parts["view"])}
    views = {ref: _view(ref, part) for ref, part in parts["views"].mapping(optional=None).items()}
    types: dict[str, DType] = {}
    for view in views.values():
        for name, dtype in view.keys.items():
            if types.setdefault(name, dtype) != dtype:
                raise parts["views"].fault(f"join key {name!r} has two types; a spine has one column of it")
    return views


def _view(ref: str, part: Part) -> CaseView:
    if not (named := re.fullmatch(r"([a-z][a-z_]*)@([1-9]\d*)", ref)):
        raise part.fault(f"{ref!r} is no view; write name@version")
    parts = part.mapping(required=("keys", "fields", "created"), optional=("ttl", "timezone", "ambiguous"))
    zone, ambiguous = parts.get("timezone"), parts.get("ambiguous")
    return CaseView(
        name=named[1],
        version=int(named[2]),
        keys={name: key.read(parse_dtype) for name, key in parts["keys"].mapping(optional=None).items()},
        fields=[_field(name, field) for name, field in parts["fields"].mapping(optional=None).items()],
        ttl_us=parts["ttl"].read(parse_duration_us) if "ttl" in parts else None,
        created=parts["created"].yes(),
        timezone=zone.text() if zone else None,
        ambiguous=ambiguous.text("earlier|later") if ambiguous else None,
    )


def _field(name: str, part: Part) -> CaseField:
    if isinstance(part.value, str):
        return CaseField(name=name, dtype=part.read(parse_dtype))
    parts = part.mapping(required=("type", "since"), optional=("default",))
    dtype = parts["type"].read(parse_dtype)
    default = parts["default"].of_type(dtype) if "default" in parts else None
    return CaseField(name=name, dtype=dtype, default=default, since=parts["since"].read(int))


def _arrivals(part: Part, views: Mapping[str, CaseView]) -> Iterator[Arrival]:
    before_us: int | None = None
    for number, item in enumerate(part.items(), start=1):
        parts = item.mapping(required=("rows",), optional=("view", "counts", "at", "acknowledged"))
        view = _named_view(parts.get("view"), item, views)
        at_us = to_us(parts["at"].read(parse_zoned)) if "at" in parts else None
        acknowledged_us = to_us(parts["acknowledged"].read(parse_zoned)) if "acknowledged" in parts else at_us
        if number > 1 and (at_us is None) != (before_us is None):
            raise item.fault("some arrivals have `at` and some have not; give it to all or to none")
        if at_us is not None and acknowledged_us is not None:
            if at_us > acknowledged_us or (before_us is not None and at_us <= before_us):
                raise item.fault("begins before the last arrival was acknowledged, or ends before it begins")
            before_us = acknowledged_us
        yield Arrival(
            number=number,
            view=view.ref,
            rows=[_row(row, view, number) for row in parts["rows"].items()],
            counts=_counts(parts["counts"]) if "counts" in parts else None,
            at_us=at_us,
            acknowledged_us=acknowledged_us,
        )


def _named_view(part: Part | None, item: Part, views: Mapping[str, CaseView]) -> CaseView:
    if part is None and len(views) > 1:
        raise item.fault(f"lacks the key 'view'; it is one of {', '.join(views)}")
    ref = next(iter(views)) if part is None else part.text()
    if ref not in views:
        raise item.fault(f"no view {ref!r}; known: {', '.join(views)}")
    return views[ref]


def _counts(part: Part) -> dict[str, int]:
    """What is not named is 0."""
    return dict.fromkeys(COUNTS, 0) | {name: count.read(int) for name, count in part.mapping(optional=COUNTS).items()}


def _row(part: Part, view: CaseView, number: int) -> SourceRow:
    times = ("event", "created") if view.created else ("event",)
    parts = part.mapping(required=("keys", *times, "values"))
    fields = {field.name: field.dtype for field in view.fields_at(number)}
    parse = parse_zoned if view.timezone is None else parse_local
    values = parts["values"].mapping(required=list(fields))
    return SourceRow(
        keys=tuple(_typed(parts["keys"], view.keys).values()),
        event=parts["event"].read(parse),
        created=parts["created"].read(parse) if view.created else None,
        values={name: values[name].of_type(dtype) for name, dtype in fields.items()},
    )


def _typed(part: Part, types: Mapping[str, DType]) -> dict[str, Any]:
    parts = part.mapping(required=list(types))
    return {name: parts[name].of_type(dtype) for name, dtype in types.items()}


def _ask(part: Part, views: Mapping[str, CaseView], arrivals: Sequence[Arrival]) -> Ask:
    parts = part.mapping(required=("keys", "as_of", "expect"), optional=("expect_event", "as_served"))
    if "as_served" in parts and any(arrival.at_us is None for arrival in arrivals):
        raise part.fault("as_served needs the times of arrivals; give each its `at`")
    if "as_served" in parts and any(field.since > 1 for view in views.values() for field in view.fields):
        raise part.fault("as_served does not go with fields added later; make two cases")
    types = {name: dtype for view in views.values() for name, dtype in view.keys.items()}
    return Ask(
        keys=_typed(parts["keys"], types),
        as_of_us=to_us(parts["as_of"].read(parse_zoned)),
        expect=_answers(parts["expect"], views),
        expect_event=_answers(parts["expect_event"], views) if "expect_event" in parts else None,
        as_served=_answers(parts["as_served"], views, served=True) if "as_served" in parts else None,
    )


def _answers(part: Part, views: Mapping[str, CaseView], *, served: bool = False) -> dict[str, Expected]:
    if list(views) == [ONLY_VIEW]:
        return {ONLY_VIEW: _answer(part, views[ONLY_VIEW], served)}
    parts = part.mapping(required=list(views))
    return {ref: _answer(parts[ref], view, served) for ref, view in views.items()}


def _answer(part: Part, view: CaseView, served: bool) -> Expected:
    parts = part.mapping(required=("status",), optional=("values", "uncertain") if served else ("values",))
    status = parts["status"].text("|".join(STATUSES))
    if (status == "PRESENT") != ("values" in parts):
        raise part.fault("values stand where the status is PRESENT, and nowhere else: all others are null")
    values = _typed(parts["values"], {field.name: field.dtype for field in view.fields}) if "values" in parts else {}
    if status == "PRESENT" and all(value is None for value in values.values()):
        raise part.fault("every value is null, so the status is NULL; leave the values out")
    return Expected(status=status, values=values, uncertain="uncertain" in parts and parts["uncertain"].yes())
