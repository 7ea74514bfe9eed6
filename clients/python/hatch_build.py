"""Build hook: compiles proto/featurestore into featurestore_client/_pb (git-ignored), for both distributions.

In a checkout the .proto files lie at the top; a source distribution of the client brings its own copy. Files keep
their names in the descriptors (`featurestore/serving/v1/serving.proto`), as clients in other languages see them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
#: What of proto/ is the client's.
PACKAGE = "featurestore"
TARGET = HERE / "src" / "featurestore_client" / "_pb"
INIT_TEXT = '"""Generated from proto/ by hatch_build.py; not edited, not committed."""\n'


def proto_folder() -> Path:
    """Where the .proto files are: beside this file in a source distribution, else at the top of the checkout."""
    own = HERE / "proto"
    return own if own.is_dir() else HERE.parents[1] / "proto"


def protoc(source: Path, protos: list[str], out: Path) -> None:
    """Run the protoc of grpcio-tools, in its own process because it keeps state between calls."""
    spec = importlib.util.find_spec("grpc_tools")
    if spec is None or spec.origin is None:
        raise RuntimeError("grpcio-tools is missing: run `make setup`")
    well_known_types = Path(spec.origin).parent / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"-I{well_known_types}"]
    command += [f"--{kind}_out={out}" for kind in ("python", "pyi")]
    done = subprocess.run([*command, *protos], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"protoc refused proto/:\n{done.stdout}{done.stderr}")


def compiled(source: Path, package: str) -> dict[str, str]:
    """Every file generated for a folder of `source`, path below `_pb` -> text."""
    protos = sorted(path.relative_to(source).as_posix() for path in (source / package).rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch)
        if protos:
            protoc(source, protos, generated)
        files = {
            path.relative_to(generated).as_posix(): path.read_text(encoding="utf-8")
            for path in generated.rglob("*.py*")
        }
    packages = {parent.as_posix() for name in files for parent in Path(name).parents} | {"."}
    return files | {(Path(package) / "__init__.py").as_posix(): INIT_TEXT for package in packages}


def regenerate(package: str = PACKAGE, target: Path = TARGET) -> int:
    """Bring `target` in line with proto/: write what changed, remove what has no source. Returns the file count."""
    files = compiled(proto_folder(), package)
    for stale in target.rglob("*.py*"):
        if "__pycache__" not in stale.parts and stale.relative_to(target).as_posix() not in files:
            stale.unlink()
    for name, text in files.items():
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return len(files)


class CustomBuildHook(BuildHookInterface[Any]):
    """Called by hatchling before it collects the files of a wheel or a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        regenerate()
