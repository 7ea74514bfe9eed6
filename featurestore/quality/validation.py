"""Validates the history of a view: every rule of its contract, counted in bounded batches and judged by its suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from featurestore.clock import to_us
from featurestore.compiler.history_rules import HistoryStretch
from featurestore.errors import ConfigError, InputError
from featurestore.feature_view import FeatureView
from featurestore.offline.base import OfflineStore
from featurestore.offline.history_rules import entities_known
from featurestore.quality.tally import Tally, tally
from featurestore.quality.whole_history import tally_history
from featurestore.whole_files import write_whole

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

#: What a report consists of.
PAGE, RESULT, SUITE = "index.html", "result.json", "suite.json"


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What became of each rule, over the `rows` rows of history up to `position`."""

    view: FeatureView
    position: int
    rows: int
    tallies: tuple[Tally, ...]
    #: The suite's result, as Great Expectations has it; one result a tally, in their order.
    judged: ExpectationSuiteValidationResult = field(repr=False)

    @property
    def success(self) -> bool:
        """Whether every expectation holds."""
        return bool(self.judged.success)

    @property
    def broken(self) -> list[Tally]:
        """The rules whose expectation does not hold."""
        return [one for one, result in zip(self.tallies, self.judged.results, strict=True) if not result.success]

    @cached_property
    def suite(self) -> Mapping[str, Any]:
        """The suite as JSON, of the rules that have a form; ready for `ExpectationSuite(**suite)` anywhere."""
        return _suite().suite_document(self.view, [one.expected for one in self.tallies])

    def write(self, folder: Path) -> None:
        """A page to read, the result and the suite as JSON; InputError when they cannot be written there."""
        from featurestore.quality.report import page

        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the report")
        texts = {
            PAGE: page(self.judged, f"Contract of {self.view.ref}", SUITE),
            RESULT: _json_text(self.judged.to_json_dict()),
            SUITE: _json_text(self.suite),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole({folder / name: text for name, text in texts.items()})
        except OSError as error:
            what = f"the report cannot be written to {folder} ({error.strerror or error})"
            raise InputError(f"{what}; name another folder") from error


def validate(
    view: FeatureView, views: Mapping[str, FeatureView], offline: OfflineStore, batch_rows: int, now: datetime
) -> ValidationResult:
    """Judge the whole history of a view as it is now; ConfigError when Great Expectations is not installed.

    `views` are those that references may name. Memory holds a batch of rows and a few examples, whatever the size of
    the history.
    """
    suite = _suite()
    with offline.open(write=False):
        position = offline.position(view.ref)
        with offline.rows_up_to(view, position, batch_rows) as batches:
            tallies = tally(view, batches, to_us(now), lambda ref, keys: entities_known(offline, views[ref], keys))
        rows = tallies[0].rows
        tallies += tally_history(offline, HistoryStretch(view=view, position=position))
    judged = suite.judge(view, tallies, f"history of {view.ref} up to position {position}", now.isoformat())
    return ValidationResult(view=view, position=position, rows=rows, tallies=tuple(tallies), judged=judged)


def _suite() -> ModuleType:
    try:
        from featurestore.quality import suite
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("great_expectations"):
            raise
        raise ConfigError(
            "validate judges with Great Expectations, which is not installed: pip install 'featurestore[quality]'"
        ) from error
    return suite


def _json_text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
