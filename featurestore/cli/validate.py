"""Judge the history of a feature view by its contract, as a Great Expectations suite; exit 1 when a rule is broken."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import plain, print_json, table
from featurestore.cli.repository import Context

if TYPE_CHECKING:
    from featurestore.quality.tally import Example, Tally
    from featurestore.quality.validation import ValidationResult

#: Examples that a person is shown of each broken rule; --json and the report have all that were kept.
SHOWN_MAX = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `validate`."""
    parser.add_argument("view", metavar="VIEW", help="a name, or name@version")
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="write a page to read, the result and the suite as JSON there"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every expectation holds."""
    with context.repository() as repository:
        result = FeatureStore.of(repository).validate(args.view)
    if args.report is not None:
        result.write(args.report)
    if context.json:
        print_json({**_document(result), "report": None if args.report is None else str(args.report)})
    else:
        print(_text(result))
        if args.report is not None:
            print(f"the report is in {args.report}")
    return 0 if result.success else 1


def _text(result: ValidationResult) -> str:
    headers = ["column", "rule", "rows", "nulls", "broken", "expectation"]
    rows: list[list[Any]] = [
        [one.expected.column, one.expected.rule, one.rows, one.nulls, one.breaches, _form(one)]
        for one in result.tallies
    ]
    lines = [table(headers, rows), ""]
    for one in result.broken:
        lines += [f"{one.expected.name}: {one.expected.says}: {example}" for example in one.examples[:SHOWN_MAX]]
    verb = "is" if len(result.broken) == 1 else "are"
    verdict = (
        f"{len(result.broken)} of {len(result.tallies)} rules {verb} broken" if result.broken else "every rule is kept"
    )
    return "\n".join([*lines, f"{result.view.ref}, {result.rows:,} rows of history: {verdict}"])


def _form(one: Tally) -> str:
    from featurestore.quality.forms import OF_HISTORY

    by_store = one.expected.rule in OF_HISTORY
    return one.expected.form.expectation or f"(the {'store' if by_store else 'gate'}'s verdict)"


def _document(result: ValidationResult) -> dict[str, Any]:
    broken = {id(one) for one in result.broken}
    return {
        "success": result.success,
        "view": result.view.ref,
        "position": result.position,
        "rows": result.rows,
        "rules": [
            {
                "column": one.expected.column,
                "rule": one.expected.rule,
                "breaks_when": one.expected.says,
                "expectation": one.expected.form.expectation,
                "success": id(one) not in broken,
                "rows": one.rows,
                "nulls": one.nulls,
                "breaches": one.breaches,
                "examples": [_example(example) for example in one.examples],
            }
            for one in result.tallies
        ],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "key": {name: plain(value) for name, value in example.key.items()},
        "event_timestamp": plain(example.event_timestamp),
        "values": {name: plain(value) for name, value in example.values.items()},
    }
