"""Build hook: compiles proto/**/*.proto into serving/_pb (git-ignored), for editable installs and wheels alike.

The proto folder is mounted for protoc at the virtual path serving/_pb, so that generated imports are absolute
(`from serving._pb.featurestore.serving.v1 import serving_pb2`); a proto that imports another names it the same way
(`import "serving/_pb/featurestore/values/v1/values.proto"`). `python hatch_build.py` regenerates without an install.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MOUNT = "serving/_pb"
INIT_TEXT = '"""Generated from proto/ by hatch_build.py; not edited, not committed."""\n'
TEMPLATE_SUFFIXES = {".md", ".py", ".sql", ".toml"}
"""What a wheel takes from definitions/: never the data or stores that a run of the example may have left there."""


def protoc(root: Path, protos: list[str], out: Path) -> None:
    """Run the protoc of grpcio-tools, in its own process because it keeps state between calls."""
    spec = importlib.util.find_spec("grpc_tools")
    if spec is None or spec.origin is None:
        raise RuntimeError("grpcio-tools is missing: run `make setup`")
    well_known_types = Path(spec.origin).parent / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{MOUNT}=proto", f"-I{well_known_types}"]
    command += [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    done = subprocess.run([*command, *protos], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"protoc refused proto/:\n{done.stdout}{done.stderr}")


def compiled(root: Path) -> dict[str, str]:
    """Every file of the generated package, path below serving/_pb -> text."""
    protos = sorted(path.relative_to(root / "proto").as_posix() for path in (root / "proto").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        if protos:
            protoc(root, [f"{MOUNT}/{name}" for name in protos], Path(scratch))
        generated = Path(scratch) / MOUNT
        files = {
            path.relative_to(generated).as_posix(): path.read_text(encoding="utf-8")
            for path in generated.rglob("*.py*")
        }
    packages = {parent.as_posix() for name in files for parent in Path(name).parents} | {"."}
    return files | {(Path(package) / "__init__.py").as_posix(): INIT_TEXT for package in packages}


def regenerate(root: Path) -> int:
    """Bring serving/_pb in line with proto/: write what changed, remove what has no source. Returns the file count."""
    files = compiled(root)
    target = root / MOUNT
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
    """Called by hatchling before it collects the files of a wheel ("standard" or "editable")."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        regenerate(root)
        if version == "standard":
            if not (root / "definitions").is_dir():
                raise RuntimeError("definitions/ is missing: a wheel ships it as the template of `featurestore init`")
            for path in sorted((root / "definitions").rglob("*")):
                if path.suffix in TEMPLATE_SUFFIXES and path.is_file():
                    name = path.relative_to(root).as_posix()
                    build_data["force_include"][name] = f"featurestore/templates/flights/{name}"


if __name__ == "__main__":
    regenerate(Path(__file__).resolve().parent)
