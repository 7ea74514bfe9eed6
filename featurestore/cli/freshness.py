"""Show how old the published data of every view is against its promise; exit 1 when a promise is broken."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import duration, instant, print_json, table
from featurestore.cli.repository import Context
from featurestore.clock import MICROSECOND, to_us

if TYPE_CHECKING:
    from featurestore.freshness import ViewFreshness


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `freshness`."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--views", metavar="VIEW", action="append", help="only this view (may be repeated)")
    chosen.add_argument("--service", metavar="NAME", help="only the views of this service (default: all views)")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every promise holds, 1 when one is broken."""
    with context.repository() as repository:
        views = FeatureStore.of(repository).freshness(args.service, views=args.views)
        now_us = to_us(repository.clock.now())
    broken = [view.view for view in views if view.broken]
    if context.json:
        print_json({"now": instant(now_us), "broken": broken, "views": [view.document() for view in views]})
    else:
        print(_text(views, broken))
    return 1 if broken else 0


def _text(views: list[ViewFreshness], broken: list[str]) -> str:
    headers = ["view", "promise", "age", "verdict", "watermark", "published as of", "position"]
    rows: list[list[Any]] = [
        [
            view.view,
            _duration(view.promise_us),
            _age(view.age_us),
            "broken (never published)" if view.broken and view.age_us is None else view.verdict,
            instant(view.watermark_us),
            instant(view.horizon_us),
            view.position,
        ]
        for view in views
    ]
    promised = sum(view.promise_us is not None for view in views)
    verdict = f"broken: {', '.join(broken)}" if broken else "none is broken"
    return "\n".join([table(headers, rows), "", f"{promised} of {len(views)} views promise freshness; {verdict}"])


def _duration(us: int | None) -> str | None:
    return None if us is None else duration(us * MICROSECOND)


def _age(us: int | None) -> str | None:
    """As people say it: days, then the time of a day, to the second."""
    return None if us is None else str((us // 1_000_000) * 1_000_000 * MICROSECOND)
