"""Text files that are there whole or not at all: written beside their places, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(texts: Mapping[Path, str]) -> None:
    """Write each text to its path; OSError when one cannot be written, and then none has changed.

    They take their places one after the other once all are on disk: a crash may leave some old, none half.
    """
    for path in texts:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(path))
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in texts}
    try:
        for path, text in texts.items():
            with parts[path].open("w", encoding="utf-8") as part:
                part.write(text)
                part.flush()
                os.fsync(part.fileno())
        for path, part_path in parts.items():
            part_path.replace(path)
    finally:
        for part_path in parts.values():
            part_path.unlink(missing_ok=True)
