"""Remove everything applied, with its data in both stores; without --yes only say what that would be."""

from __future__ import annotations

import argparse

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.cli.steps import step_documents, step_lines
from featurestore.errors import InputError
from featurestore.registry.apply import teardown
from featurestore.registry.definitions import Definitions
from featurestore.registry.holder import user_name
from featurestore.registry.plan import make_teardown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `teardown`."""
    parser.add_argument("--yes", action="store_true", help="do it; history cannot be brought back")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 once all is gone; InputError without --yes, unless there is nothing to remove."""
    with context.repository() as repository:
        registry, state, offline = repository.registry, repository.state, repository.offline
        if args.yes:
            wait_s = repository.settings.registry.wait_s
            result = teardown(
                registry, state, offline, repository.online, who=user_name(), clock=repository.clock, wait_s=wait_s
            )
            steps, revision = result.steps, result.revision
        else:
            repository.finish_interrupted_apply()
            steps, revision = make_teardown(registry, offline.history_rows).steps, registry.revision()
    if steps and not args.yes:
        listed = "\n".join(step_lines(steps))
        raise InputError(f"teardown would take {len(steps)} steps:\n{listed}\npass --yes to do it")
    if context.json:
        print_json({"revision": revision, "steps": step_documents(steps, Definitions())})
    elif steps:
        print("\n".join([f"removed everything, in {len(steps)} steps:", *step_lines(steps)]))
    else:
        print("nothing to do: nothing is applied")
    return 0
