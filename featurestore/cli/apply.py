"""Make the definitions effective: the steps that `plan` prints, recorded, safe against a kill at any moment."""

from __future__ import annotations

import argparse
from datetime import timedelta

from featurestore.cli.allowances import add_allowances
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.cli.steps import step_documents, step_lines
from featurestore.registry.apply import ApplyResult, apply
from featurestore.registry.holder import user_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `apply`."""
    add_allowances(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    """0 once everything declared is effective."""
    with context.repository() as repository:
        declared = repository.definitions
        result = apply(
            repository.registry,
            repository.state,
            repository.offline,
            repository.online,
            declared,
            who=user_name(),
            clock=repository.clock,
            allow_empty=args.allow_empty,
            allow_data_loss=args.allow_data_loss,
            allow_in_use=args.allow_in_use,
            recent=timedelta(days=repository.settings.registry.readers_days),
            wait_s=repository.settings.registry.wait_s,
        )
    if context.json:
        print_json(
            {
                "revision": result.revision,
                "apply": None if result.record is None else result.record.id,
                "finished_apply": None if result.finished is None else result.finished.id,
                "steps": step_documents(result.steps, declared),
            }
        )
    else:
        print(_text(result))
    return 0


def _text(result: ApplyResult) -> str:
    lines = []
    if result.finished is not None:
        lines.append(f"finished apply {result.finished.id}, which was interrupted")
    if result.record is None:
        lines.append(f"nothing to do: what is declared is applied (revision {result.revision})")
    else:
        lines += [f"applied {len(result.steps)} steps as revision {result.revision}:", *step_lines(result.steps)]
    return "\n".join(lines)
