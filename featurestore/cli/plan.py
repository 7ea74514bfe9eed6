"""Show what `apply` would change, step by step: compatible, signature (clients must bind anew) or breaking."""

from __future__ import annotations

import argparse
from datetime import timedelta
from functools import partial
from pathlib import Path

from featurestore.cli.allowances import add_allowances, allowed
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context, Repository
from featurestore.cli.steps import step_documents, step_lines
from featurestore.registry.export import read_snapshot
from featurestore.registry.plan import AddColumns, CreateHistory, Plan, make_plan, plan_between


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `plan`."""
    parser.add_argument("--sql", action="store_true", help="print the SQL that makes and widens histories, too")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when apply would refuse, as a breaking change without new version"
    )
    parser.add_argument("--unapplied", action="store_true", help="exit 1 when anything declared is not applied")
    parser.add_argument(
        "--against", metavar="FILE", type=Path, help="compare with a `registry export`, without registry and stores"
    )
    add_allowances(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    """0; 1 with --check when apply would refuse, and with --unapplied when there are steps."""
    with context.repository() as repository:
        plan = _plan(repository, args.against)
        statements = _statements(plan, repository) if args.sql else []
    refused = plan.refusals(allowed(args))
    if context.json:
        document = {"steps": step_documents(plan.steps, plan.target), "refused": refused, "notes": plan.notes}
        print_json(document | ({"sql": statements} if args.sql else {}))
    else:
        print(_text(plan, refused, statements))
    return 1 if (args.check and refused) or (args.unapplied and plan.steps) else 0


def _plan(repository: Repository, against: Path | None) -> Plan:
    declared = repository.definitions
    if against is not None:
        return plan_between(read_snapshot(against, repository.settings.project), declared)
    repository.finish_interrupted_apply()
    recent = timedelta(days=repository.settings.registry.readers_days)
    rows = partial(_history_rows, repository)
    return make_plan(repository.registry, repository.state, declared, rows, recent)


def _history_rows(repository: Repository, ref: str) -> int:
    return repository.offline.history_rows(ref)  # opened when it is asked for


def _text(plan: Plan, refused: list[str], statements: list[str]) -> str:
    if not plan.steps:
        lines = ["nothing to do: what is declared is applied"]
    else:
        lines = [f"{len(plan.steps)} steps:", *step_lines(plan.steps)]
    if refused:
        lines += ["", f"apply would refuse {len(refused)} of them:", *(f"  {text}" for text in refused)]
    if plan.notes:
        lines += ["", "notes:", *(f"  {note}" for note in plan.notes)]
    if statements:
        lines += ["", *(f"{statement};" for statement in statements)]
    return "\n".join(lines)


def _statements(plan: Plan, repository: Repository) -> list[str]:
    from featurestore.compiler.compile import history_ddl
    from featurestore.compiler.dialects.duckdb import DUCKDB
    from featurestore.compiler.history_table import add_column

    project = repository.settings.project
    statements: list[str] = []
    for step in plan.steps:
        if isinstance(step, CreateHistory):
            statements += history_ddl(project, plan.target.views[step.name])
        elif isinstance(step, AddColumns):
            view = plan.target.views[step.name]
            for column in step.columns:
                statements += [DUCKDB.sql(change) for change in add_column(project, view, view.fields[column], DUCKDB)]
    return statements
