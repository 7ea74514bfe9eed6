"""Prove that the online store holds what history says, entity by entity; exit 1 when it does not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import instant, plain, print_json, table
from featurestore.cli.repository import Context

if TYPE_CHECKING:
    from featurestore.parity.verify import ViewParity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `verify`."""
    parser.add_argument("--service", metavar="NAME", help="only the views of this service (default: all views)")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every published entity is equal; rows that wait to be published are told, and no fault."""
    with context.repository() as repository:
        compared = FeatureStore.of(repository).verify(args.service)
    faults = sum(parity.faults for parity in compared)
    if context.json:
        print_json({"equal": faults == 0, "views": [_document(parity) for parity in compared]})
    else:
        print(_text(compared, faults))
    return 1 if faults else 0


def _text(compared: list[ViewParity], faults: int) -> str:
    kinds = list(compared[0].counts) if compared else []
    headers = ["view", "as of", "equal", *kinds, "pending rows"]
    rows: list[list[Any]] = [
        [
            parity.view,
            "never published" if parity.horizon_us is None else instant(parity.horizon_us),
            parity.equal,
            *parity.counts.values(),
            parity.pending,
        ]
        for parity in compared
    ]
    lines = [table(headers, rows), ""]
    for parity in compared:
        lines += [f"{parity.view} {example.kind}: {_key(example.key)}: {example.says}" for example in parity.examples]
    total = sum(parity.equal for parity in compared)
    verdict = f"{faults:,} differ" if faults else "no difference"
    return "\n".join([*lines, f"{total:,} entities equal, {verdict}"])


def _key(key: Any) -> str:
    return ", ".join(f"{name}={plain(value)}" for name, value in key.items())


def _document(parity: ViewParity) -> dict[str, Any]:
    return {
        "view": parity.view,
        "position": parity.position,
        "horizon": instant(parity.horizon_us),
        "equal": parity.equal,
        "evicted": parity.evicted,
        "pending": parity.pending,
        **parity.counts,
        "examples": [
            {"kind": e.kind, "key": {name: plain(value) for name, value in e.key.items()}, "says": e.says}
            for e in parity.examples
        ],
    }
