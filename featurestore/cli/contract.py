"""Print the contract of an applied feature view as a document for other tools: JSON Schema of a row, or ODCS."""

from __future__ import annotations

import argparse

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `contract`."""
    parser.add_argument("view", metavar="VIEW", help="a feature view, or name@version")
    parser.add_argument(
        "--format",
        choices=["json-schema", "odcs"],
        default="odcs",
        help="Open Data Contract Standard in YAML (default), or the JSON Schema of one row",
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0; NotFoundError for an unknown view. ODCS is YAML, and JSON under --json."""
    from featurestore.contract.json_schema import json_schema
    from featurestore.contract.odcs import open_data_contract
    from featurestore.contract.yaml_text import yaml_text

    with context.repository() as repository:
        view, project = repository.registry.view(args.view), repository.registry.project
    document = json_schema(view) if args.format == "json-schema" else open_data_contract(view, project)
    if context.json or args.format == "json-schema":
        print_json(document)
    else:
        print(yaml_text(document), end="")
    return 0
