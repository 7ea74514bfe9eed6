"""Push the rows of a file to a view: through gate, history and online store. Exit 2 when a row is rejected, 3 when
the online store could not be written and rows are pending."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli.output import Progress, print_json
from featurestore.cli.repository import Context
from featurestore.errors import InputError

if TYPE_CHECKING:
    from featurestore.ingest.push import PushResult

#: Rejected rows that are listed; the counts tell of all.
REJECTIONS_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `push`."""
    parser.add_argument("view", metavar="VIEW", help="a feature view, by name or name@version")
    parser.add_argument("file", metavar="FILE", help="a Parquet, CSV or Arrow file with the columns of its source")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every row is durable and online as far as it is due."""
    from featurestore.ingest.push import RowResult

    results: list[PushResult] = []
    line = Progress()
    with context.repository() as repository:
        repository.finish_interrupted_apply()
        try:
            for batch in _batches(Path(args.file), repository.settings.push.batch_rows):
                results.append(repository.pusher.push_batch(args.view, batch))
                line.show(f"{args.view}: pushed {sum(len(result.results) for result in results):,} rows")
        finally:
            line.done()
        view = repository.registry.view(args.view).ref
    document = _document(view, results)
    if context.json:
        print_json(document)
    else:
        print(_text(document))
    if document[RowResult.REJECTED.name.lower()]:
        return 2
    return 3 if document[RowResult.PENDING.name.lower()] else 0


def _batches(path: Path, batch_rows: int) -> Any:
    from featurestore.offline.sources import SourceFile, read_files

    if not path.is_file():
        raise InputError(f"there is no file {path}; name the Parquet, CSV or Arrow file that holds the rows")
    return read_files([SourceFile(path=path, name=str(path), size=0, digest="")], batch_rows)


def _document(view: str, results: list[PushResult]) -> dict[str, Any]:
    from featurestore.ingest.push import RowResult

    counts = {result.name.lower(): sum(pushed.count(result) for pushed in results) for result in RowResult}
    shown = [
        {"row": int(row), "field": field, "rule": rule, "reason": reason, "value": value}
        for pushed in results
        for row, field, rule, reason, value in pushed.rejections.listed(REJECTIONS_SHOWN)
    ][:REJECTIONS_SHOWN]
    reasons = [pushed.pending_reason for pushed in results if pushed.pending_reason]
    rows = sum(len(pushed.results) for pushed in results)
    return {"view": view, "rows": rows, **counts, "rejections": shown, "pending_reason": reasons[0] if reasons else ""}


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{document['view']}: {document['rows']:,} rows, {document['accepted']:,} accepted, "
        f"{document['correction']:,} corrections, {document['duplicate']:,} duplicates, "
        f"{document['pending']:,} pending, {document['rejected']:,} rejected"
    ]
    lines += [f"row {row['row']}: {row['reason']} (it holds {row['value']})" for row in document["rejections"]]
    if document["pending_reason"]:
        lines.append(f"pending rows are durable, the next publish delivers them: {document['pending_reason']}")
    return "\n".join(lines)
