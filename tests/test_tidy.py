"""The code itself under test: sizes, clocks, broad excepts, leftovers, what may be committed.

Every rule is one function from a file to its offences, and has a test with a planted offence beside the test over the
whole tree (tracked files and new ones that git does not ignore). An exception to a rule is an entry with its reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
FILE_BYTES_MAX = 1 << 20

LONG_FUNCTIONS: dict[str, str] = {}
"""`path::function` -> why it is longer than FUNCTION_LINES_MAX."""

LONG_MODULES: dict[str, str] = {
    "tests/unit/ingest/test_canonical.py": "one table of types",
}
"""`path` -> why it is longer than MODULE_LINES_MAX."""

BROAD_EXCEPTS: dict[str, str] = {
    "featurestore/cli/main.py": "the last resort: a defect of ours becomes exit code 70 and a report",
    "featurestore/registry/load.py": "user code runs here, and whatever it raises is a problem of its file",
    "serving/inference/batcher.py": "a model is foreign code: whatever it raises is the fault of its requests alone",
    "serving/inference/loaded_version.py": "a model is foreign code: its files keep no other from being served",
    "serving/own_threads.py": "hands whatever is raised in a thread to whoever waits for it",
    "serving/rest.py": "the outermost layer of REST: a defect of ours becomes a 500 with the request's id",
    "serving/status_codes.py": "the interceptor: a defect of ours becomes INTERNAL, with the request's id in the log",
}
"""`path` -> why it may catch everything. A handler that ends with a bare `raise` needs no entry."""

WALL_CLOCK = "featurestore/clock.py"
PRINTERS = ("featurestore/cli/", "featurestore/demo", "benchmarks/", "tests/")

MARKS = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|X" + r"XX)\b")
"""Put together from pieces, like the patterns below, so that this file does not offend itself."""
MACHINE_PATHS = re.compile(r"(?<![\w.\-/])/(?:ro" + "ot|ho" + "me|wo" + "rk)/")
REGISTRY_HOSTS = re.compile("py" + r"pi\.org|python" + "hosted|np" + "mjs", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the tree, read and parsed at most once."""

    path: str
    """Below the root, with forward slashes."""
    file: Path

    @cached_property
    def text(self) -> str:
        """Empty for a binary file."""
        content = self.file.read_bytes()
        return "" if b"\0" in content else content.decode("utf-8")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    def at(self, node: ast.expr | ast.stmt | ast.excepthandler, offence: str) -> str:
        return f"{self.path}:{node.lineno}: {offence}"

    def lines_matching(self, pattern: re.Pattern[str], offence: str) -> Iterator[str]:
        if pattern.search(self.text):
            for number, line in enumerate(self.text.splitlines(), start=1):
                if found := pattern.search(line):
                    yield f"{self.path}:{number}: {offence}: {found.group()}"


Rule = Callable[[SourceFile], Iterator[str]]


def last_name(node: ast.expr | None) -> str:
    """`datetime` for both `datetime` and `dt.datetime`."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


# ------------------------------------------------------------------ rules for Python


def long_functions(source: SourceFile) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX and f"{source.path}::{node.name}" not in LONG_FUNCTIONS:
                yield source.at(node, f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}")


def long_modules(source: SourceFile) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MODULE_LINES_MAX and source.path not in LONG_MODULES:
        yield f"{source.path}: {lines} lines, more than {MODULE_LINES_MAX}"


def missing_docstrings(source: SourceFile) -> Iterator[str]:
    if ast.get_docstring(source.tree) is None:
        yield f"{source.path}: the module has no docstring"


def wall_clocks(source: SourceFile) -> Iterator[str]:
    if source.path == WALL_CLOCK:
        return
    for node in source.nodes:
        match node:
            case ast.Attribute(attr="now" | "utcnow" | "today", value=owner) if last_name(owner) in {
                "datetime",
                "date",
            }:
                yield source.at(node, f"reads the wall clock ({node.attr}); only {WALL_CLOCK} may")
            case ast.Attribute(attr="time" | "time_ns", value=ast.Name(id="time")):
                yield source.at(node, f"reads the wall clock (time.{node.attr}); only {WALL_CLOCK} may")
            case ast.ImportFrom(module="time", names=names) if {name.name for name in names} & {"time", "time_ns"}:
                yield source.at(node, f"imports the wall clock; only {WALL_CLOCK} may")


def broad_excepts(source: SourceFile) -> Iterator[str]:
    for node in source.nodes:
        if not isinstance(node, ast.ExceptHandler) or source.path in BROAD_EXCEPTS:
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or last_name(kind) in {"Exception", "BaseException"} for kind in caught)
        match node.body[-1]:
            case ast.Raise(exc=None):
                continue
        if broad:
            yield source.at(node, "catches everything; name what it expects, or re-raise")


def unfinished_code(source: SourceFile) -> Iterator[str]:
    abstract: set[ast.AST] = set()
    for node in source.nodes:
        if isinstance(node, ast.ClassDef):
            bases = {last_name(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases}
            if bases & {"Protocol", "ABC"}:
                abstract.update(ast.walk(node))
    for node in source.nodes:
        if isinstance(node, ast.Name) and node.id == "NotImplementedError" and node not in abstract:
            yield source.at(node, "NotImplementedError outside a protocol")


def prints(source: SourceFile) -> Iterator[str]:
    if source.path.startswith(PRINTERS):
        return
    for node in source.nodes:
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield source.at(node, "prints; only the command, the demo and benchmarks do")


# ------------------------------------------------------------------ rules for every file


def leftover_marks(source: SourceFile) -> Iterator[str]:
    yield from source.lines_matching(MARKS, "leftover mark (open an issue or write a decision note)")


def machine_paths(source: SourceFile) -> Iterator[str]:
    yield from source.lines_matching(MACHINE_PATHS, "path of one machine")


def registry_hosts(source: SourceFile) -> Iterator[str]:
    yield from source.lines_matching(REGISTRY_HOSTS, "address of a package registry")


def large_files(source: SourceFile) -> Iterator[str]:
    size = source.file.stat().st_size
    if size > FILE_BYTES_MAX:
        yield f"{source.path}: {size} bytes, more than {FILE_BYTES_MAX}"


PYTHON_RULES: tuple[Rule, ...] = (
    long_functions,
    long_modules,
    missing_docstrings,
    wall_clocks,
    broad_excepts,
    unfinished_code,
    prints,
)
FILE_RULES: tuple[Rule, ...] = (leftover_marks, machine_paths, registry_hosts, large_files)


# ------------------------------------------------------------------ the tree obeys


@pytest.fixture(scope="module")
def tree() -> list[SourceFile]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [
        SourceFile(path=path, file=ROOT / path)
        for path in sorted({*listed} - {"", "LICENSE"})
        if (ROOT / path).is_file()
    ]


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_files_obey(rule: Rule, tree: list[SourceFile]) -> None:
    assert [offence for source in tree if source.path.endswith(".py") for offence in rule(source)] == []


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_all_files_obey(rule: Rule, tree: list[SourceFile]) -> None:
    assert [offence for source in tree for offence in rule(source)] == []


# ------------------------------------------------------------------ the rules bite

PLANTED: list[tuple[Rule, str, str, int]] = [
    (long_functions, "a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, 1),
    (long_functions, "a.py", "async def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1), 0),
    (long_modules, "a.py", "x = 1\n" * (MODULE_LINES_MAX + 1), 1),
    (long_modules, "a.py", "x = 1\n" * MODULE_LINES_MAX, 0),
    (missing_docstrings, "a.py", "x = 1\n", 1),
    (missing_docstrings, "a.py", "", 1),
    (missing_docstrings, "a.py", '"""What it is."""\n', 0),
    (wall_clocks, "a.py", "dt.datetime.now(UTC)\ndatetime.utcnow()\ndate.today()\n", 3),
    (wall_clocks, "a.py", "time.time()\ntime.time_ns()\nfrom time import time\n", 3),
    (wall_clocks, "a.py", "time.monotonic()\ntime.perf_counter()\nclock.now()\nrow.time\n", 0),
    (wall_clocks, WALL_CLOCK, "datetime.now(UTC)\n", 0),
    (broad_excepts, "a.py", "try: f()\nexcept: pass\n", 1),
    (broad_excepts, "a.py", "try: f()\nexcept (ValueError, Exception): pass\n", 1),
    (broad_excepts, "a.py", "try: f()\nexcept builtins.BaseException as e: g(e)\n", 1),
    (broad_excepts, "a.py", "try: f()\nexcept ValueError: pass\n", 0),
    (broad_excepts, "a.py", "try: f()\nexcept BaseException:\n    undo()\n    raise\n", 0),
    (unfinished_code, "a.py", "def f(): raise NotImplementedError\ndef g(): raise NotImplementedError('x')\n", 2),
    (unfinished_code, "a.py", "class P(Protocol[T]):\n    def f(self): raise NotImplementedError\n", 0),
    (prints, "featurestore/a.py", "print(1)\n", 1),
    (prints, "featurestore/cli/a.py", "print(1)\n", 0),
    (leftover_marks, "a.md", "one\nTO" + "DO: two\n# fix" + "me later is a word\nFIX" + "ME\n", 2),
    (machine_paths, "a.md", "see /ho" + "me/me/x\nhttps://example.com/ho" + "me/x\n'/wo" + "rk/x'\na/wo" + "rk/b\n", 2),
    (registry_hosts, "a.txt", "--index-url https://py" + "pi.org/simple\n", 1),
    (large_files, "a.bin", "x" * (FILE_BYTES_MAX + 1), 1),
    (large_files, "a.bin", "x" * FILE_BYTES_MAX, 0),
]


@pytest.mark.parametrize(
    ("rule", "path", "text", "offences"), PLANTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_planted_offences_are_caught(rule: Rule, path: str, text: str, offences: int, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")

    found = list(rule(SourceFile(path=path, file=file)))

    assert len(found) == offences, found
    assert all(offence.startswith(path) for offence in found)


def test_every_rule_has_a_planted_offence() -> None:
    planted = {rule for rule, _, _, offences in PLANTED if offences}
    assert planted == {*PYTHON_RULES, *FILE_RULES}


def test_every_exception_has_a_reason() -> None:
    for exceptions in (LONG_FUNCTIONS, LONG_MODULES, BROAD_EXCEPTS):
        assert all(reason.strip() for reason in exceptions.values())


# ------------------------------------------------------------------ the lock fits the project


def unlocked(requirements: list[str], lock: str) -> list[str]:
    """The requirements that no line `name==version` of the lock satisfies."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock, re.MULTILINE):
        pins.setdefault(name.lower(), []).append(version)
    parsed = [Requirement(text) for text in requirements]
    return [
        str(need)
        for need in parsed
        if not all(need.specifier.contains(version) for version in pins.get(need.name.lower(), ["0"]))
    ]


def test_requirements_txt_locks_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    asked = project["project"]["dependencies"] + extras["dev"] + extras["flights"] + project["build-system"]["requires"]

    missing = unlocked(
        [text for text in asked if not text.startswith("featurestore[")], (ROOT / "requirements.txt").read_text()
    )

    assert missing == [], "run make lock"


def test_a_requirement_outside_the_lock_is_seen() -> None:
    assert unlocked(["a>=2", "b>=1", "c>=1"], "a==1.0 \\\nb==1.5 ; x\n") == ["a>=2", "c>=1"]
