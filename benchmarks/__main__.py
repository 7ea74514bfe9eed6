"""`python -m benchmarks [NAME ...] [--json] [--size small|full] [--keep DIR]`: runs benchmarks and reports.

Progress goes to stderr; stdout gets a table, or one JSON document. Exit codes are those of `featurestore`: 0 when all
that ran meets what the design asks for (or was run small), 1 when a figure does not, or when two sides differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import (
    cold_start,
    flights,
    gate,
    inference,
    load,
    load_publish,
    lookup,
    machine,
    many_views,
    point_in_time,
    postgres,
    preload,
    publish,
    selective,
    serving,
    shedding,
    startup,
    validate,
    verify,
)
from benchmarks.measure import SEED, Measured, Result, Setting, Unequal
from featurestore.errors import FeatureStoreError

BENCHMARKS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        startup,
        flights,
        point_in_time,
        selective,
        load,
        gate,
        publish,
        load_publish,
        verify,
        validate,
        postgres,
        lookup,
        serving,
        cold_start,
        preload,
        shedding,
        many_views,
        inference,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    about = {"machine": machine.facts(), "size": args.size, "seed": SEED}
    if not args.json:
        print(json.dumps(about, indent=2))
    results, failed = [], {}
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as work:
        setting = Setting(size=args.size, work=Path(work), keep=args.keep, show=_show)
        for name in args.names or BENCHMARKS:
            _show(f"{name}: {BENCHMARKS[name].WHAT}")
            try:
                results.append(BENCHMARKS[name].run(setting))
            except (FeatureStoreError, Unequal) as error:
                failed[name] = str(error)
                _show(f"{name} gave no figures: {error}")
                continue
            if not args.json:
                print(table(results[-1], judged=args.size == "full"), flush=True)
    document = {**about, "results": [result.document() for result in results], "failed": failed}
    if args.json:
        print(json.dumps(document, indent=2))
    missed = args.size == "full" and any(one.holds is False for result in results for one in result.measured)
    return 1 if failed or missed else 0


def table(result: Result, *, judged: bool) -> str:
    """A result for people; only at full size do the design's numbers mean anything."""
    rows = [_row(one, judged) for one in result.measured]
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [f"\n{result.name}  ({', '.join(f'{name} {value}' for name, value in result.sizes.items())})"]
    for row in rows:
        cells = (row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]), row[3].ljust(widths[3]))
        lines.append(f"  {'  '.join((*cells, row[4]))}".rstrip())
    return "\n".join([*lines, *(f"    {note}" for note in result.notes)])


def _row(one: Measured, judged: bool) -> tuple[str, str, str, str, str]:
    value = f"{one.value:,.0f}" if abs(one.value) >= 1000 else f"{one.value:.3f}"
    if one.required is None:
        return one.what, value, one.unit, "", one.detail
    verdict = ("holds: " if one.holds else "MISSED: ") if judged else ""
    return one.what, value, one.unit, f"{verdict}{one.sense} {one.required:,g}", one.detail


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=f"Benchmarks: {', '.join(BENCHMARKS)}.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="what to run (default: all)")
    parser.add_argument("--size", choices=("small", "full"), default="full", help="small is for trying it out")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, default=_cache(), help="where large tables stay between runs (%(default)s)"
    )
    return parser


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "featurestore-bench"


def _show(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
