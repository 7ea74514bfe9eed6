"""Write what is applied as one text for version control, which `plan --check --against` compares with."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.errors import InputError
from featurestore.registry.export import FORMAT, snapshot_text
from featurestore.whole_files import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `registry`."""
    parser.add_argument("action", choices=["export"], help="export: definitions, row schemas and signatures as JSON")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write there instead of to stdout")


def run(args: argparse.Namespace, context: Context) -> int:
    """0; InputError when the file cannot be written. `--json` says what was written, unless it is on stdout itself."""
    with context.repository() as repository:
        repository.finish_interrupted_apply()
        snapshot = repository.registry.snapshot()
        text = snapshot_text(snapshot, repository.settings.project)
    if args.out is None:
        print(text, end="")
        return 0
    _write(args.out, text)
    if context.json:
        print_json({"path": str(args.out), "format": FORMAT, "revision": snapshot.revision})
    else:
        print(f"wrote revision {snapshot.revision} to {args.out}")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        write_whole({path: text})
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name another file with --out") from error
