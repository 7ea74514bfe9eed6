"""What it costs to import the library and to ask the command for help, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, Result, Setting, in_turn

NAME = "startup"
WHAT = "import featurestore and featurestore --help against bare Python"
IMPORT_S_MAX = 0.05
HELP_S_MAX = 0.35


@dataclass(frozen=True, kw_only=True)
class Size:
    """How often each command is started."""

    runs: int


SIZES = {"tiny": Size(runs=2), "small": Size(runs=10), "full": Size(runs=30)}

COMMANDS = {
    "bare": ["-c", "pass"],
    "import": ["-c", "import featurestore"],
    "help": ["-c", "from featurestore.cli.main import main; raise SystemExit(main(['--help']))"],
}


def run(setting: Setting) -> Result:
    """Seconds above bare Python for the import, seconds in all for the help."""
    size = SIZES[setting.size]
    for command in COMMANDS.values():
        _start(command)  # compiles the modules
    setting.show(f"starting each {size.runs} times")
    times = in_turn({name: partial(_start, command) for name, command in COMMANDS.items()}, size.runs)
    return Result(
        name=NAME,
        sizes=asdict(size),
        measured=[
            Measured(
                what="import featurestore, above bare Python",
                value=times["import"].best - times["bare"].best,
                unit="s",
                required=IMPORT_S_MAX,
                sense="at most",
                detail=f"{times['import'].median - times['bare'].median:.3f} by medians",
            ),
            Measured(
                what="featurestore --help, in all",
                value=times["help"].best,
                unit="s",
                required=HELP_S_MAX,
                sense="at most",
                detail=f"{times['help'].median:.3f} by median",
            ),
        ],
        notes=[f"{name}: {taken.says()}" for name, taken in times.items()],
    )


def _start(command: list[str]) -> None:
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, cwd=root)
