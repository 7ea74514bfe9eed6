"""`verify --served`: what clients received, recomputed from history; the report for people and programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import plain, print_json, table
from featurestore.cli.repository import Context

if TYPE_CHECKING:
    from featurestore.parity.served import ServedDifference, ServedParity
    from featurestore.served_log import ReadLog


def verify_served(log: str, service: str | None, context: Context) -> int:
    """0 when every record of the log is what history gives, 1 when one differs."""
    with context.repository() as repository:
        # As every path that a user types, relative to where it is typed.
        compared, read = FeatureStore.of(repository).verify_served(Path(log), service)
    faults = sum(parity.faults.total() for parity in compared)
    if context.json:
        views = [_document(parity) for parity in compared]
        print_json({"equal": faults == 0, **asdict(read), "views": views})
    else:
        print(_text(compared, read, faults))
    return 1 if faults else 0


def _text(compared: list[ServedParity], read: ReadLog, faults: int) -> str:
    from featurestore.parity.served import CAUSES

    rows = [
        [parity.view, parity.records, parity.equal, parity.late, parity.uncertain, parity.faults.total()]
        for parity in compared
    ]
    lines = [table(["view", "records", "equal", "late", "uncertain", "differ"], rows), ""]
    for parity in compared:
        lines += [f"{parity.view} {_shown(example)}" for example in parity.examples]
    lines += [f"{cause}: {CAUSES[cause]}" for cause in dict.fromkeys(c for parity in compared for c in parity.faults)]
    if read.cut:
        lines.append(f"{read.cut} of {read.files} files are cut off, or still written: read up to the last whole batch")
    if read.dropped:
        lines.append(f"{read.dropped:,} reply rows were served and not recorded, since the queue was full")
    total = sum(parity.equal for parity in compared)
    return "\n".join([*lines, f"{total:,} records equal, {f'{faults:,} differ' if faults else 'no difference'}"])


def _shown(example: ServedDifference) -> str:
    key = ", ".join(f"{name}={plain(value)}" for name, value in example.key.items())
    served, expected = example.served or "no row", example.expected or "no row"
    return f"{example.cause}: {key} at {example.served_at}: {example.status}, {served}; expected {expected}"


def _document(parity: ServedParity) -> dict[str, Any]:
    examples = [
        asdict(example) | {"key": {name: plain(value) for name, value in example.key.items()}}
        for example in parity.examples
    ]
    return asdict(parity) | {"faults": dict(parity.faults), "examples": examples}
