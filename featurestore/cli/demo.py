"""The main job on real flights: declared views become a history, a leak-free training set, an online store, answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore.cli.output import Progress, print_json, table
from featurestore.cli.repository import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `demo`."""
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default="flights-demo", help="made, or used again (default: flights-demo)"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when all of it agrees to the last bit; 1 when the proof finds a difference."""
    from featurestore.cli.flights_demo import FlightsDemo

    folder = (context.directory / args.folder).absolute()
    line = Progress()
    demo = FlightsDemo(Path(folder), line.show)
    try:
        demo.run()
    finally:
        line.done()
    if context.json:
        print_json({"folder": str(folder), "steps": [step.document() for step in demo.steps], "equal": demo.equal})
    else:
        print(table(["step", "what happened", "seconds"], [[s.name, s.what, f"{s.seconds:.1f}"] for s in demo.steps]))
        print(f"\n{demo.closing(args.folder)}")
    return 0 if demo.equal else 1
