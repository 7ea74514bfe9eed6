"""Loads a repository's definitions: imports every file below the folder by path, collects what they declare.

The one place where user code runs, so whatever a file raises becomes a problem with file and line, and the other
files are loaded all the same. Nothing of the repository stays in `sys.modules`: the next one loads as if it were first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from featurestore.entity import Entity
from featurestore.errors import ConfigError, DefinitionError, Problem, suggest
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.registry.definitions import Definitions
from featurestore.registry.validate import validate
from featurestore.source import FileSource, SqlSource
from featurestore.view_rules import Condition, Reference, Volume

_KINDS = (Entity, Field, FileSource, SqlSource, FeatureView, FeatureService, Condition, Reference, Volume)
_DECLARED = {kind.__name__: kind for kind in _KINDS}
_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.+)")
_POSITIONAL = re.compile(r"(\w+)\.__init__\(\) takes 1 positional argument but \d+ .*given")

#: Loading changes sys.path, sys.meta_path and sys.modules, which all threads share.
_LOADING = threading.Lock()


@dataclass
class Found:
    """What the files declare, each object once, in the order of the files."""

    entities: list[Entity] = field(default_factory=list)
    views: list[FeatureView] = field(default_factory=list)
    services: list[FeatureService] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, value: object) -> None:
        """Collect a definition, unless it is there already; anything else is left alone."""
        kinds: tuple[tuple[type, list], ...] = (  # type: ignore[type-arg]
            (Entity, self.entities),
            (FeatureView, self.views),
            (FeatureService, self.services),
        )
        for kind, collected in kinds:
            if isinstance(value, kind) and id(value) not in self.seen:
                self.seen.add(id(value))
                collected.append(value)


def load_definitions(repo: Path, folder: Path | str = "definitions") -> Definitions:
    """All definitions below `repo/folder`; DefinitionError lists every problem of every file.

    Files and folders whose names begin with `_` or `.` are not searched, but may be imported by others. A definition
    counts when it is an attribute of a module; an entity also when a view uses it.
    """
    repo = repo.resolve()
    base = (repo / folder).resolve()
    if not base.is_dir():
        raise ConfigError(f"no folder {folder} in {repo}; make it, or set [definitions] path in featurestore.toml")
    found, problems = _import_all(repo, base)
    whole = not problems
    problems += validate(found.entities, found.views, found.services, whole=whole)
    if problems:
        raise DefinitionError(_in_order([_below(problem, repo) for problem in problems]))
    return Definitions(
        entities={entity.name: entity for entity in found.entities},
        views={view.ref: view for view in found.views},
        services={service.name: service for service in found.services},
    )


def _import_all(repo: Path, base: Path) -> tuple[Found, list[Problem]]:
    found, problems = Found(), []
    # What definitions print must not mix with the one JSON document on stdout.
    with _LOADING, _importable(repo, base) as package, contextlib.redirect_stdout(sys.stderr):
        for path in _files(base):
            name = ".".join([package, *path.relative_to(base).with_suffix("").parts])
            if problem := _name_problem(path, base):
                problems.append(problem)
                continue
            try:
                module = importlib.import_module(name)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - user code runs here and may raise anything
                problems.append(_problem(error, path, repo))
                continue
            for value in list(vars(module).values()):
                found.add(value)
    for view in found.views:
        for entity in view.entities:
            found.add(entity)
    return found, problems


def _files(base: Path) -> list[Path]:
    def searched(path: Path) -> bool:
        return not any(part.startswith(("_", ".")) for part in path.relative_to(base).parts)

    return [path for path in sorted(base.rglob("*.py")) if searched(path) and path.is_file()]


def _name_problem(path: Path, base: Path) -> Problem | None:
    parts = path.relative_to(base).with_suffix("").parts
    if any("." in part for part in parts):
        return Problem(
            what=f"{path.name} cannot be imported: a name with a dot is no module name",
            way_out="rename it",
            path=str(path),
            line=1,
        )
    if path.with_suffix("").is_dir():
        return Problem(
            what=f"{path.name} and the folder {path.stem}/ are the same module",
            way_out="rename one of them",
            path=str(path),
            line=1,
        )
    return None


# ------------------------------------------------------------------ importing by path


class _Loader(importlib.machinery.SourceFileLoader):
    """Always compiles the source: a cached file of the same second and size would be believed."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `definitions.*` in this repository alone, whatever else is called `definitions` on this machine."""

    def __init__(self, package: str, base: Path) -> None:
        self._package, self._base = package, base

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._package and not fullname.startswith(f"{self._package}."):
            return None
        place = self._base.joinpath(*fullname.removeprefix(self._package).lstrip(".").split("."))
        if place.is_dir():
            initial = place / "__init__.py"
            loader = _Loader(fullname, str(initial)) if initial.is_file() else None
            spec = importlib.machinery.ModuleSpec(fullname, loader, is_package=True)
            spec.submodule_search_locations = [str(place)]
            if loader is not None:
                spec.origin, spec.has_location = str(initial), True
            return spec
        file = place.with_name(f"{place.name}.py")
        if file.is_file():
            return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, str(file)))
        return None


@contextlib.contextmanager
def _importable(repo: Path, base: Path) -> Iterator[str]:
    """The repository importable for the block; yields the name of the definitions package."""
    package = base.name
    before = dict(sys.modules)
    hidden = [name for name in before if name == package or name.startswith(f"{package}.")]
    for name in hidden:
        del sys.modules[name]
    path = list(sys.path)
    finder = _Finder(package, base)
    sys.path.insert(0, str(repo))
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield package
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = path
        # A copy, since what a list of items would collect meanwhile may import as it ends.
        for name, module in sys.modules.copy().items():
            if name not in before and _lies_in(module, repo, base):
                del sys.modules[name]
        for name in hidden:
            sys.modules[name] = before[name]


def _lies_in(module: ModuleType, repo: Path, base: Path) -> bool:
    """Whether a module belongs to the repository (an environment that lies inside it does not)."""
    if module.__name__.partition(".")[0] == base.name:
        return True
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(repo) and "site-packages" not in Path(file).parts


# ------------------------------------------------------------------ what went wrong


def _problem(error: BaseException, path: Path, repo: Path) -> Problem:
    """What a file raised, at the innermost line of the repository."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(repo):
        what = f"{type(error).__name__}: {error.msg}"
        return Problem(what=what, way_out="mend this line", path=error.filename, line=error.lineno or 1)
    at, line = _innermost(error.__traceback__, path, repo)
    what, way_out = _words(error)
    return Problem(what=what, way_out=way_out, path=at, line=line)


def _innermost(traceback: TracebackType | None, path: Path, repo: Path) -> tuple[str, int]:
    at, line = str(path), 1
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if file.is_relative_to(repo) and "site-packages" not in file.parts:
            at, line = str(file), traceback.tb_lineno
        traceback = traceback.tb_next
    return at, line


def _words(error: BaseException) -> tuple[str, str]:
    if isinstance(error, TypeError):
        if (match := _UNEXPECTED.search(str(error))) and match[1] in _DECLARED:
            known = [argument.name for argument in fields(_DECLARED[match[1]]) if argument.init]
            return f"{match[1]} has no argument {match[2]!r}", suggest(match[2], known).removeprefix("; ")
        if (match := _MISSING.search(str(error))) and match[1] in _DECLARED:
            return f"{match[1]} needs {match[2]}", "add what is missing"
        if (match := _POSITIONAL.search(str(error))) and match[1] in _DECLARED:
            return f"{match[1]} takes keyword arguments only", f'write {match[1]}(name="...", ...)'
    if isinstance(error, SystemExit):
        return f"the file ends the process (SystemExit: {error.code})", "definitions only declare; take the call out"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return text, "install the module, or mend the import"
    return text, "nothing of this file was loaded; mend this line"


def _below(problem: Problem, repo: Path) -> Problem:
    path = Path(problem.path)
    if path.is_relative_to(repo):
        problem = replace(problem, path=path.relative_to(repo).as_posix())
    # A problem between two files names the other one too.
    return replace(problem, what=problem.what.replace(f"{repo.as_posix()}/", ""))


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """By file and line; the same problem reached through several imports counts once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.path, problem.line))
