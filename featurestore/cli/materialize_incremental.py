"""Load what arrived in the sources since the last time, and publish what is due to the online store."""

from __future__ import annotations

import argparse

from featurestore.cli.materializing import add_run_arguments, materialize
from featurestore.cli.repository import Context
from featurestore.clock import parse_instant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `materialize-incremental`."""
    parser.add_argument("end", metavar="END", nargs="?", help="event time to stop before (default: load everything)")
    add_run_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every view succeeded, else the code of the first error."""
    return materialize(args, context, None, None if args.end is None else parse_instant(args.end, "END"))
