"""Environments of their own for what does not go together with ours, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def interpreter(folder: Path, requirements: Sequence[str], show: Callable[[str], None]) -> Path:
    """The Python of an environment with these packages; made where it is not there, with pip as it is set up here."""
    done, python = folder / "complete", folder / "bin" / "python"
    if not done.exists():
        show(f"installing {' '.join(requirements)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install"]
        subprocess.run([*pip, *requirements], check=True, stdout=sys.stderr)
        done.touch()
    return python
