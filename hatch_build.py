"""Build hook: compiles proto/ for client and sidecar, and ships definitions/ as a template in a real wheel.

`python hatch_build.py` renews the generated code without an install.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SIDECAR_TARGET = ROOT / "serving" / "inference" / "_pb"
TEMPLATE_SUFFIXES = {".md", ".py", ".sql", ".toml"}
"""What a wheel takes from definitions/: never the data or stores that a run of the example may have left there."""


def regenerate() -> None:
    """Compile proto/: what is the client's by its own build hook, since this wheel ships it too, and the sidecar's."""
    build = client_build()
    build.regenerate()
    build.regenerate("inference", SIDECAR_TARGET)


def client_build() -> ModuleType:
    """The client's own build hook."""
    spec = importlib.util.spec_from_file_location("client_build", ROOT / "clients" / "python" / "hatch_build.py")
    assert spec is not None, "a path that ends in .py always has a loader"
    assert spec.loader is not None, "a path that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CustomBuildHook(BuildHookInterface[Any]):
    """Called by hatchling before it collects the files of a wheel ("standard" or "editable")."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        regenerate()
        if version == "standard":
            if not (ROOT / "definitions").is_dir():
                raise RuntimeError("definitions/ is missing: a wheel ships it as the template of `featurestore init`")
            for path in sorted((ROOT / "definitions").rglob("*")):
                if path.suffix in TEMPLATE_SUFFIXES and path.is_file():
                    name = path.relative_to(ROOT).as_posix()
                    build_data["force_include"][name] = f"featurestore/templates/flights/{name}"


if __name__ == "__main__":
    regenerate()
