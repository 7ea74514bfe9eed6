"""The flags that let `apply` do what it refuses by itself; `plan` takes the same ones."""

from __future__ import annotations

import argparse

from featurestore.registry.plan import ALLOW_DATA_LOSS, ALLOW_EMPTY, ALLOW_IN_USE

_FLAGS = {
    ALLOW_EMPTY: "let a service move to a view version that was never published",
    ALLOW_DATA_LOSS: "drop the history of views that are no longer declared",
    ALLOW_IN_USE: "remove views that an applied service or a recent reader uses",
}


def add_allowances(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    for flag, help_text in _FLAGS.items():
        parser.add_argument(flag, action="store_true", help=help_text)


def allowed(args: argparse.Namespace) -> list[str]:
    """Those that were passed."""
    return [flag for flag in _FLAGS if getattr(args, flag.removeprefix("--").replace("-", "_"))]
