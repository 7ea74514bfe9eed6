"""proto/ as `make check` holds it: linted, every declaration commented, compatible with the last release."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).parent / "buf"
SERVING = "proto/featurestore/serving/v1/serving.proto"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The contract as it is, in a folder where it may be changed."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def recipe(word: str) -> list[str]:
    """The line of `make check` that runs `buf WORD`, as arguments."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (baseline,) = re.findall(r"^BASELINE\s*:= (\S+)$", makefile, flags=re.MULTILINE)
    (line,) = re.findall(rf"^\t@\$\(BIN\)/buf ({word}.*)$", makefile, flags=re.MULTILINE)
    return line.replace("$(BASELINE)", baseline).split()


def buf(word: str, folder: Path) -> str:
    """What buf has to say; empty when it is content."""
    done = subprocess.run([BUF, *recipe(word)], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert bool(done.returncode) == bool(done.stdout), done.stderr
    return done.stdout


def change(checkout: Path, old: str, new: str) -> None:
    text = (checkout / SERVING).read_text(encoding="utf-8")
    assert old in text
    (checkout / SERVING).write_text(text.replace(old, new, 1), encoding="utf-8")


ROWS = "  // How many rows the column has.\n"
FORMAT = "  // One float32 matrix.\n"


def test_the_contract_passes(checkout: Path) -> None:
    assert buf("lint", checkout) == ""
    assert buf("breaking", checkout) == ""


def test_an_added_field_breaks_nobody(checkout: Path) -> None:
    change(checkout, "  bytes element_offsets = 7;\n", "  bytes element_offsets = 7;\n  // More.\n  bytes more = 8;\n")

    assert buf("lint", checkout) == ""
    assert buf("breaking", checkout) == ""


BREAKING = {
    "type": ("uint32 rows = 3;", "uint64 rows = 3;", "changed type"),
    "number": ("uint32 rows = 3;", "uint32 rows = 13;", 'field "3" .* was deleted'),
    "name": ("uint32 rows = 3;", "uint32 lines = 3;", "changed name"),
    "field gone": (f"{ROWS}  uint32 rows = 3;\n", "", 'field "3" .* was deleted'),
    "enum value": ("STATUS_STALE = 5;", "STATUS_STALE = 15;", 'enum value "5" .* was deleted'),
    "method gone": ("rpc DescribeService(", "rpc Describe(", 'RPC "DescribeService" .* was deleted'),
    "message of a method": ("returns (DescribeServiceResponse)", "returns (Column)", "changed response type"),
    "Java package": ('java_package = "featurestore.serving.v1"', 'java_package = "other"', "java_package"),
}


@pytest.mark.parametrize(("old", "new", "words"), BREAKING.values(), ids=BREAKING)
def test_a_planted_breaking_change_is_caught(checkout: Path, old: str, new: str, words: str) -> None:
    change(checkout, old, new)

    assert re.search(words, buf("breaking", checkout))


LINT = {
    "field without comment": (ROWS, "", 'Field "rows" should have a non-empty comment'),
    "enum value without comment": (FORMAT, "", 'Enum value "REPLY_FORMAT_MATRIX" should have a non-empty comment'),
    "name": ("bytes element_offsets = 7;", "bytes elementOffsets = 7;", "lower_snake_case"),
}


@pytest.mark.parametrize(("old", "new", "words"), LINT.values(), ids=LINT)
def test_a_planted_offence_against_the_lint_is_caught(checkout: Path, old: str, new: str, words: str) -> None:
    change(checkout, old, new)

    assert words in buf("lint", checkout)


def test_the_target_that_renews_the_baseline_writes_the_contract() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (target,) = re.findall(r"^proto-baseline:.*\n\t@(.*)$", makefile, flags=re.MULTILINE)
    assert target.endswith("> $(BASELINE)")
    (build,) = re.findall(r"\$\(BIN\)/(buf build [^|]*)\|", target)
    image = subprocess.run([BUF.parent / "buf", *build.split()[1:]], cwd=ROOT, capture_output=True, check=True).stdout
    assert b'"served_at_us"' in image
