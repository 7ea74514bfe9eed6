"""Export a training set: for each row of a spine, or each entity known at an instant, what was known of it then."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore import FeatureStore
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.clock import parse_instant
from featurestore.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `get-historical-features`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--service", metavar="NAME", help="the feature service to read")
    what.add_argument("--features", metavar="VIEW:FIELD,...", help="features one by one, instead of a service")
    what.add_argument("--verify-manifest", metavar="FILE", help="build a training set again and compare")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--spine", metavar="FILE", help="the rows that ask: Parquet, CSV or Arrow with keys and as_of")
    rows.add_argument("--as-of", metavar="TIME", help="ask for every entity known at this time")
    parser.add_argument(
        "--out", metavar="PATH", help="*.parquet, *.arrow or *.csv; PATH.manifest.json is put beside it"
    )
    parser.add_argument(
        "--knowledge",
        choices=["created", "event", "as_served"],
        default="created",
        help="from when a row counts as known: its created timestamp (default), its event timestamp, or the publish "
        "that brought it online",
    )
    parser.add_argument("--full-feature-names", action="store_true", help="name columns view__field")
    parser.add_argument("--with-status", action="store_true", help="add <view>__status and <view>__age_us columns")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when the training set is written; with --verify-manifest 1 when it comes out otherwise."""
    if args.verify_manifest is not None:
        return _verify(args, context)
    if args.service is None and args.features is None:
        raise InputError("nothing is asked for; pass --service NAME or --features VIEW:FIELD,...")
    if (args.spine is None) == (args.as_of is None):
        raise InputError("pass --spine FILE with the rows that ask, or --as-of TIME")
    if args.out is None:
        raise InputError("pass --out PATH, where the training set is written")
    return _export(args, context)


def _export(args: argparse.Namespace, context: Context) -> int:
    features = None if args.features is None else args.features.split(",")
    how = {
        "features": features,
        "knowledge": args.knowledge,
        "full_feature_names": args.full_feature_names,
        "with_status": args.with_status,
    }
    with context.repository() as repository:
        store = FeatureStore.of(repository)
        if args.as_of is not None:
            instant = parse_instant(args.as_of, "--as-of")
            training_set = store.get_historical_features_as_of(instant, args.service, **how)
        else:
            training_set = store.get_historical_features(Path(args.spine), args.service, **how)
        training_set.write(args.out)
    rows, columns, digest = training_set.table.num_rows, training_set.table.num_columns, training_set.digest
    if context.json:
        print_json({"path": args.out, "rows": rows, "columns": training_set.table.column_names, "digest": digest})
    else:
        print(f"wrote {rows:,} rows x {columns} columns to {args.out}\ncontent digest {digest}")
    return 0


def _verify(args: argparse.Namespace, context: Context) -> int:
    with context.repository() as repository:
        found = FeatureStore.of(repository).verify_manifest(args.verify_manifest, spine=args.spine)
    if context.json:
        print_json({"manifest": args.verify_manifest, "equal": not found, "differences": found})
    elif found:
        print("\n".join([f"{args.verify_manifest}: the training set comes out otherwise:", *(f"  {d}" for d in found)]))
    else:
        print(f"{args.verify_manifest}: built again, equal to the last bit")
    return 1 if found else 0
