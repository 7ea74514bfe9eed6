"""Load the event times [START, END) of the sources into history, and publish what is due to the online store."""

from __future__ import annotations

import argparse

from featurestore.cli.materializing import add_run_arguments, materialize
from featurestore.cli.repository import Context
from featurestore.clock import parse_instant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `materialize`."""
    parser.add_argument("start", metavar="START", help="first event time to load, ISO 8601 with a zone")
    parser.add_argument("end", metavar="END", help="event time to stop before")
    add_run_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every view succeeded, else the code of the first error."""
    return materialize(args, context, parse_instant(args.start, "START"), parse_instant(args.end, "END"))
