"""Rows that broke a contract: count them (list), look at them (show), write them to a file (export), pass them through
the gate again after a fix (replay), or remove them (drop)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.arguments import count
from featurestore.cli.output import Progress, instant, print_json, properties, table
from featurestore.cli.repository import Context
from featurestore.errors import InputError

if TYPE_CHECKING:
    from materialization.job import RunOutcome

Answer = tuple[Any, str]

#: Rows that `show` shows unless told otherwise, and characters of a row's value in its table.
ROWS_SHOWN, VALUE_CHARACTERS = 20, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarantine`."""
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("id", metavar="ID", nargs="?", help="show: the id of one row")
    parser.add_argument("--view", metavar="VIEW", help="only rows of this view")
    parser.add_argument("--rule", metavar="RULE", help="only rows that break this rule")
    parser.add_argument("--run", metavar="ID", help="only rows that this run set aside first")
    parser.add_argument("--limit", type=count, help=f"show: most rows shown (default: {ROWS_SHOWN})")
    parser.add_argument("--out", metavar="FILE", type=Path, help="export: a .parquet, .arrow or .csv file")
    parser.add_argument("--into", metavar="VIEW", help="replay: into another version of the view")
    parser.add_argument("--yes", action="store_true", default=None, help="drop: do it; the rows cannot be brought back")


def run(args: argparse.Namespace, context: Context) -> int:
    """0, also when rows break the contract still; what is left says so."""
    _require(args)
    with context.repository() as repository:
        document, text = ACTIONS[args.action](FeatureStore.of(repository), args)
    if context.json:
        print_json(document)
    else:
        print(text)
    return 0


def _require(args: argparse.Namespace) -> None:
    """InputError for an argument that the action does not take, or lacks."""
    given = {name for name in ("id", "view", "rule", "run", "limit", "out", "into", "yes") if getattr(args, name)}
    takes = {"view", "rule", "run"} | _TAKES.get(args.action, set())
    if spare := sorted(given - takes):
        raise InputError(f"quarantine {args.action} takes no {_flags(spare)}; it takes {_flags(sorted(takes))}")
    lacking = sorted(_NEEDS.get(args.action, set()) - given)
    if args.action == "show" and not given & {"id", "view"}:
        raise InputError("quarantine show needs an ID or --view VIEW; `featurestore quarantine list` counts by view")
    if lacking:
        raise InputError(f"quarantine {args.action} needs {_flags(lacking)}")


def _flags(names: list[str]) -> str:
    return ", ".join("ID" if name == "id" else f"--{name}" for name in names)


#: What is said of no row; by whether only some rows were asked for.
_NO_ROW = {False: "no row is quarantined", True: "no such row is quarantined; `featurestore quarantine list` has all"}


def _narrowed(args: argparse.Namespace) -> bool:
    return bool(args.view or args.rule or args.run)


def _filters(args: argparse.Namespace) -> dict[str, Any]:
    return {"rule": args.rule or "", "run": args.run or ""}


# ------------------------------------------------------------------ actions


def _list(store: FeatureStore, args: argparse.Namespace) -> Answer:
    counts = store.quarantine_counts(**_filters(args))
    views = store.repository.registry.views()
    chosen = {ref for ref, view in views.items() if args.view in (None, ref, view.name)}
    if args.view is not None and not chosen:
        store.repository.registry.view(args.view)  # raises, with the names there are
    times = {name: counts.column(name).cast("int64").to_pylist() for name in ("first_at", "last_at")}
    rows = [
        row | {name: instant(values[place]) for name, values in times.items()}
        for place, row in enumerate(counts.drop_columns(list(times)).to_pylist())
        if row["view"] in chosen
    ]
    total = sum(row["rows"] for row in rows)
    if not rows:
        return {"rows": 0, "counts": []}, _NO_ROW[_narrowed(args)]
    shown = table(list(rows[0]), [list(row.values()) for row in rows])
    return {"rows": total, "counts": rows}, f"{shown}\n\n{total:,} rows are quarantined"


def _show(store: FeatureStore, args: argparse.Namespace) -> Answer:
    from featurestore.ingest.quarantined_rows import documents

    if args.id is not None:
        (found,) = documents(_one(store, args))
        raw = {name: json.dumps(value, ensure_ascii=False) for name, value in (found["raw"] or {}).items()}
        said = properties({name: value for name, value in found.items() if name not in ("raw", "types")})
        return found, f"{said}\n\n{properties(raw) or 'the row itself was not kept'}"
    limit = args.limit or ROWS_SHOWN
    rows = documents(store.quarantine(args.view, **_filters(args), limit=limit + 1))
    shown = rows[:limit]
    if not shown:
        return {"rows": [], "more": False}, _NO_ROW[_narrowed(args)]
    cells = [
        [row["id"], row["quarantined_at"], row["reason"], _value(row), f"{row['source']}, row {row['source_row']}"]
        for row in shown
    ]
    text = table(["id", "set aside at", "reason", "value", "source"], cells)
    more = len(rows) > limit
    note = f"\n\nthe first {limit:,}; --limit shows more, export writes all" if more else ""
    return {"rows": shown, "more": more}, f"{text}{note}"


def _one(store: FeatureStore, args: argparse.Namespace) -> Any:
    """The row with an id, of whichever view."""
    refs = [args.view] if args.view else list(store.repository.registry.views())
    for ref in refs:
        kept = store.quarantine(ref, id=args.id, limit=1)
        if kept.num_rows:
            return kept
    raise InputError(
        f"no quarantined row has the id {args.id!r}; `featurestore quarantine show --view VIEW` lists those of a view"
    )


def _value(row: dict[str, Any]) -> str:
    """The value that the breach is about."""
    raw = row["raw"] or {}
    text = json.dumps(raw[row["field"]], ensure_ascii=False) if row["field"] in raw else "-"
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 3] + "..."


def _export(store: FeatureStore, args: argparse.Namespace) -> Answer:
    from featurestore.ingest.quarantined_rows import SourceRows
    from featurestore.offline.export import table_writer
    from featurestore.offline.quarantine import Chosen

    chosen = Chosen(view=store.repository.quarantined_view(args.view).ref, **_filters(args))
    rows, written = SourceRows(store.repository.offline.quarantine, chosen), 0
    with table_writer(args.out, rows.schema) as write:
        for table in rows.tables():
            write(table)
            written += table.num_rows
    document = {"path": str(args.out), "rows": written, "columns": rows.schema.names}
    return document, f"wrote {written:,} rows x {len(rows.schema)} columns to {args.out}"


def _replay(store: FeatureStore, args: argparse.Namespace) -> Answer:
    line = Progress()
    try:
        outcome = store.replay_quarantine(
            args.view,
            **_filters(args),
            into=args.into,
            progress=lambda view, step, rows: line.show(f"{view}: {step} {rows:,} rows"),
        )
    finally:
        line.done()
    if outcome.errors:
        raise outcome.errors[0]
    return {"run": outcome.run, "views": outcome.counts()}, _replayed(outcome)


def _replayed(outcome: RunOutcome) -> str:
    (done,) = outcome.views
    loaded, published = done.loaded, done.published
    assert loaded is not None
    if not loaded.read:
        return f"{done.view}: no row to replay"
    lines = [
        f"{done.view}: {loaded.read:,} rows replayed, {loaded.added:,} into history ({loaded.corrections:,} "
        f"corrections), {loaded.duplicates:,} duplicates, {loaded.quarantined:,} stay in quarantine"
    ]
    if loaded.quarantined:
        lines.append("still: " + ", ".join(f"{rule} {rows:,}" for rule, rows in sorted(loaded.breaches.items())))
    if published is not None:
        lines.append(f"published {published.rows_written:,} rows as of {instant(published.horizon_us)}")
    return "\n".join([*lines, f"run {outcome.run}"])


def _drop(store: FeatureStore, args: argparse.Namespace) -> Answer:
    if not args.yes:
        ref = store.repository.registry.view(args.view).ref
        counted = store.quarantine_counts(**_filters(args)).to_pylist()
        rows = sum(row["rows"] for row in counted if row["view"] == ref)
        raise InputError(f"{rows:,} rows would be removed for good; export them first, and pass --yes to do it")
    dropped = store.drop_quarantine(args.view, **_filters(args))
    return {"dropped": dropped}, f"dropped {dropped:,} rows"


ACTIONS: dict[str, Callable[[FeatureStore, argparse.Namespace], Answer]] = {
    "list": _list,
    "show": _show,
    "export": _export,
    "replay": _replay,
    "drop": _drop,
}
_TAKES = {"show": {"id", "limit"}, "export": {"out"}, "replay": {"into"}, "drop": {"yes"}}
_NEEDS = {"export": {"view", "out"}, "replay": {"view"}, "drop": {"view"}}
