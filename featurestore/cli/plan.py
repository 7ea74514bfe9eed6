"""Show what `apply` would change, step by step: compatible, signature (clients must bind anew) or breaking."""

from __future__ import annotations

import argparse

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context, Repository
from featurestore.cli.steps import step_documents, step_lines
from featurestore.registry.plan import AddColumns, CreateHistory, Plan, make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `plan`."""
    parser.add_argument("--sql", action="store_true", help="print the SQL that makes and widens histories, too")
    parser.add_argument("--check", action="store_true", help="exit 1 when apply would change or refuse anything")


def run(args: argparse.Namespace, context: Context) -> int:
    """0, or with --check 1 when there are steps."""
    with context.repository() as repository:
        declared = repository.definitions
        repository.finish_interrupted_apply()
        plan = make_plan(
            repository.registry, repository.state, declared, lambda ref: repository.offline.history_rows(ref)
        )
        statements = _statements(plan, repository) if args.sql else []
    if context.json:
        document = {"steps": step_documents(plan.steps, plan.target), "refused": plan.refusals(), "notes": plan.notes}
        print_json(document | ({"sql": statements} if args.sql else {}))
    else:
        print(_text(plan, statements))
    return 1 if args.check and plan.steps else 0


def _text(plan: Plan, statements: list[str]) -> str:
    if not plan.steps:
        lines = ["nothing to do: what is declared is applied"]
    else:
        lines = [f"{len(plan.steps)} steps:", *step_lines(plan.steps)]
    if refused := plan.refusals():
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
