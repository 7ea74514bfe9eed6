"""Show the effective settings: defaults, featurestore.toml, environment and files of secrets, in this order."""

from __future__ import annotations

import argparse
from typing import Any

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.settings import load_settings, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`config` has no flags of its own."""


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when the settings are sound."""
    document = shown(load_settings(context.directory))
    if context.json:
        print_json(document)
    else:
        print(_toml(document))
    return 0


def _toml(document: dict[str, Any]) -> str:
    """The settings in the form of featurestore.toml, so that lines may be copied into it."""
    lines = [f"{name} = {_literal(value)}" for name, value in document.items() if not isinstance(value, dict)]
    for section, values in document.items():
        if isinstance(values, dict):
            # TOML has no null: what is not set has no line.
            said = {name: value for name, value in values.items() if value is not None}
            lines += ["", f"[{section}]", *(f"{name} = {_literal(value)}" for name, value in said.items())]
    return "\n".join(lines)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value)
