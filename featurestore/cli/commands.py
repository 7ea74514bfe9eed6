"""The table of commands. A row is a module with `add_arguments(parser)` and `run(args, context) -> exit code`.

The module is imported only when its command runs. A command that is not built has no row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Where a command lives, what `--help` says of it, and under which heading."""

    module: str
    help: str
    group: str


_REPOSITORY, _REGISTRY, _DATA, _PROOF, _SERVING = "Repository", "Definitions", "Data", "Proof", "Serving"

COMMANDS: dict[str, Command] = {
    "demo": Command("featurestore.cli.demo", "run the main job on real flights, in a folder to explore", _REPOSITORY),
    "init": Command("featurestore.cli.init", "make a runnable repository", _REPOSITORY),
    "config": Command("featurestore.cli.config", "show the effective settings, secrets masked", _REPOSITORY),
    "plan": Command("featurestore.cli.plan", "show what apply would change, in classes", _REGISTRY),
    "apply": Command("featurestore.cli.apply", "make the definitions effective", _REGISTRY),
    "registry": Command("featurestore.cli.registry", "export what is applied, to compare with in CI", _REGISTRY),
    "list": Command("featurestore.cli.list_objects", "list what is applied, runs and applies", _REGISTRY),
    "describe": Command("featurestore.cli.describe", "show everything about one of them", _REGISTRY),
    "contract": Command("featurestore.cli.contract", "print a view's contract for other tools", _REGISTRY),
    "teardown": Command("featurestore.cli.teardown", "remove everything applied, with its data", _REGISTRY),
    "materialize": Command("featurestore.cli.materialize", "load a span of event times, publish what is due", _DATA),
    "materialize-incremental": Command(
        "featurestore.cli.materialize_incremental", "load what arrived, publish what is due", _DATA
    ),
    "get-historical-features": Command(
        "featurestore.cli.get_historical_features", "export a training set, or verify one", _DATA
    ),
    "get-online-features": Command(
        "featurestore.cli.get_online_features", "look up the latest features of some entities", _DATA
    ),
    "push": Command("featurestore.cli.push", "push the rows of a file to a view, history and online", _DATA),
    "quarantine": Command(
        "featurestore.cli.quarantine", "show the rows that broke a contract, replay or drop them", _DATA
    ),
    "verify": Command("featurestore.cli.verify", "prove that online equals offline", _PROOF),
    "validate": Command("featurestore.cli.validate", "judge the history of a view by its contract", _PROOF),
    "freshness": Command("featurestore.cli.freshness", "show the age of every view against its promise", _PROOF),
    "token": Command("featurestore.cli.token", "make a bearer token for a client of serve", _SERVING),
    "serve": Command("featurestore.cli.serve", "serve features over gRPC", _SERVING),
    "sidecar": Command("featurestore.cli.sidecar", "run models beside it, over the Open Inference Protocol", _SERVING),
    "sign-model": Command("featurestore.cli.sign_model", "write beside a model what it was trained on", _SERVING),
    "predict": Command("featurestore.cli.predict", "predict for the rows of a file, with a model", _SERVING),
}
