"""Predict for every row of a file, with the features that were known of it at its as_of; rows stream through."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore import FeatureStore
from featurestore.cli.arguments import count
from featurestore.cli.output import Progress, print_json
from featurestore.cli.repository import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `predict`."""
    parser.add_argument("--service", required=True, metavar="NAME", help="the feature service of the model")
    parser.add_argument("--model", required=True, metavar="NAME[/VERSION]", help="the model, and one of its versions")
    parser.add_argument(
        "--spine", required=True, metavar="FILE", help="the rows that ask: Parquet, CSV or Arrow with keys and as_of"
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="*.parquet, *.arrow or *.csv")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--models", type=Path, metavar="DIR", help="run the model here, from a folder of models")
    where.add_argument(
        "--address", help="ask the sidecar at host:port or unix:///path (default: the setting inference.address)"
    )
    parser.add_argument(
        "--batch-rows", type=count, metavar="ROWS", help="rows that the model sees at a time (default: 1024)"
    )
    parser.add_argument("--with-status", action="store_true", help="add <view>__status and <view>__age_us columns")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when the predictions are written."""
    name, _, version = args.model.partition("/")
    line = Progress()
    with context.repository() as repository:
        try:
            done = FeatureStore.of(repository).predict(
                Path(args.spine),
                args.service,
                name,
                out=args.out,
                models=args.models,
                address=args.address,
                version=version,
                batch_rows=args.batch_rows,
                with_status=args.with_status,
                progress=lambda rows: line.show(f"predicted {rows:,} rows"),
            )
        finally:
            line.done()
    if context.json:
        print_json(
            {"path": args.out, "rows": done.rows, "model": name, "version": done.version, "outputs": done.outputs}
        )
    else:
        print(
            f"wrote {done.rows:,} rows with {', '.join(done.outputs)} of {name}, version {done.version or '-'}, "
            f"to {args.out}"
        )
    return 0
