"""What `materialize` and `materialize-incremental` share: flags, progress, and the report of a run."""

from __future__ import annotations

import argparse
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import Progress, instant, print_json, table
from featurestore.cli.repository import Context
from featurestore.errors import InputError

if TYPE_CHECKING:
    from materialization.job import RunOutcome


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a run."""
    parser.add_argument("--views", metavar="VIEW", action="append", help="only this view (may be repeated)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--load-only", action="store_true", help="fill history, leave the online store as it is")
    steps.add_argument("--publish-only", action="store_true", help="publish what is due, read no source")
    parser.add_argument(
        "--repair", action="store_true", help="publish every entity again, whatever was published before"
    )


def materialize(args: argparse.Namespace, context: Context, start: datetime | None, end: datetime | None) -> int:
    """Run, report, and raise the first error there was."""
    from materialization.job import Request

    if args.repair and args.load_only:
        raise InputError("--repair publishes, --load-only does not; pass one of them")
    request = Request(start=start, end=end, load=not args.publish_only, publish=not args.load_only, repair=args.repair)
    watched = _Watched()
    with context.repository() as repository:
        try:
            outcome = FeatureStore.of(repository).run(request, views=args.views, progress=watched)
        finally:
            watched.done()
    if context.json and not outcome.errors:
        print_json({"run": outcome.run, "views": outcome.counts()})
    elif not context.json:
        print(_text(outcome))
    if outcome.errors:
        raise outcome.errors[0]
    return 0


class _Watched:
    """Rows so far, per view and step, on one line of the terminal."""

    def __init__(self) -> None:
        self._line = Progress()
        self._rows: Counter[tuple[str, str]] = Counter()

    def __call__(self, view: str, step: str, rows: int) -> None:
        self._rows[view, step] += rows
        self._line.show(f"{view}: {step} {self._rows[view, step]:,} rows")

    def done(self) -> None:
        self._line.done()


def _text(outcome: RunOutcome) -> str:
    headers = ["view", "read", "added", "corrected", "duplicate", "quarantined", "published", "as of"]
    rows: list[list[Any]] = []
    for view in outcome.views:
        loaded, published = view.loaded, view.published
        rows.append(
            [
                view.view,
                loaded and loaded.read,
                loaded and loaded.added,
                loaded and loaded.corrections,
                loaded and loaded.duplicates,
                loaded and loaded.quarantined,
                published and published.rows_written,
                published and instant(published.horizon_us),
            ]
        )
    lines = [table(headers, rows), "", f"run {outcome.run}"]
    for view in outcome.views:
        if view.loaded is not None:
            lines += _remarks(view.view, view.loaded)
        if view.error is not None:
            lines.append(f"{view.view} failed: {view.error}")
    return "\n".join(lines)


def _remarks(view: str, loaded: Any) -> list[str]:
    remarks = []
    if loaded.ambiguous:
        remarks.append(f"{view}: {loaded.ambiguous} rows of one batch have the same keys and times and other values")
    if loaded.quarantined:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in sorted(loaded.breaches.items()))
        remarks.append(
            f"{view}: {loaded.quarantined:,} rows break the contract and are set aside ({rules}); "
            f"`featurestore quarantine show --view {view}` shows them"
        )
    if loaded.warned:
        remarks.append(f"{view}: {loaded.warned} rows break the contract and were kept (on_violation is warn)")
    return remarks
