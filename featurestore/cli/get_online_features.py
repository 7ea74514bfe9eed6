"""Look up the latest features of some entities: the serving answer, from the online store directly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from featurestore import FeatureStore
from featurestore.cli.arguments import seconds
from featurestore.cli.output import plain, print_json, table
from featurestore.cli.repository import Context
from featurestore.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `get-online-features`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--service", metavar="NAME", help="the feature service to read")
    what.add_argument("--features", metavar="VIEW:FIELD,...", help="features one by one, instead of a service")
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument(
        "--key", metavar="NAME=VALUE,...", action="append", help="join keys and request fields of a row; once per row"
    )
    rows.add_argument("--keys", metavar="FILE", help="the same as columns of a Parquet, CSV or Arrow file")
    parser.add_argument("--max-age", metavar="SECONDS", type=seconds, help="rows older than this are STALE")
    parser.add_argument("--full-feature-names", action="store_true", help="name columns view__field")


def run(args: argparse.Namespace, context: Context) -> int:
    """0; what is missing, expired or stale is told by the statuses."""
    features = None if args.features is None else args.features.split(",")
    with context.repository() as repository:
        response = FeatureStore.of(repository).get_online_features(
            args.service,
            _keys(args),
            features=features,
            max_age=args.max_age,
            full_feature_names=args.full_feature_names,
        )
    shown = response.to_dict(statuses=True, event_timestamps=True)
    if context.json:
        print_json({name: [plain(value) for value in values] for name, values in shown.items()})
    else:
        print(_text(shown))
    return 0


def _keys(args: argparse.Namespace) -> Path | list[dict[str, str]]:
    if args.keys is not None:
        return Path(args.keys)
    return [_row(text) for text in args.key]


def _row(text: str) -> dict[str, str]:
    row: dict[str, str] = {}
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"--key {text!r} is not valid UTF-8; a file of keys holds any bytes") from error
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name or name in row:
            raise InputError(f"--key {text!r} is not of the form NAME=VALUE,NAME=VALUE with each name once")
        row[name] = value
    return row


def _text(shown: Mapping[str, list[object]]) -> str:
    """One line per column, one column per row asked for: features are many, rows few."""
    count = len(next(iter(shown.values()), []))
    headers = ["", *(f"row {row}" for row in range(count))]
    return table(headers, [[name, *(_shown(value) for value in values)] for name, values in shown.items()])


def _shown(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case float():
            return f"{value:.7g}"
        case _:
            return value
