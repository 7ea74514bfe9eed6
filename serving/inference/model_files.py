"""The model repository as a folder: `<model>/<version>/` with a model's file, `<model>/config.toml` beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ConfigError
from serving.inference.model_config import FILE_NAME

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class VersionFiles:
    """A version's folder; its stamp changes with any file in it."""

    number: int
    folder: Path
    stamp: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, its versions by number."""

    name: str
    folder: Path
    versions: Mapping[int, VersionFiles]
    config_stamp: tuple[int, int]


def scan(root: Path) -> dict[str, ModelFiles]:
    """Every model of the folder by name, but those that begin with a dot; ConfigError when it cannot be read."""
    try:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{root} cannot be read ({error.strerror}); name a folder of models with --models") from error
    return {name: _model(root / name) for name in folders}


def _model(folder: Path) -> ModelFiles:
    versions = {}
    for entry in _entries(folder):
        if _NUMBER.fullmatch(entry.name) and entry.is_dir():
            versions[int(entry.name)] = VersionFiles(int(entry.name), Path(entry.path), _stamp(Path(entry.path)))
    return ModelFiles(folder.name, folder, versions, _config_stamp(folder / FILE_NAME))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Nothing where a folder went away meanwhile."""
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    for entry in _entries(folder):
        try:
            about = entry.stat()
        except OSError:
            continue
        found.append((entry.name, about.st_mtime_ns, about.st_size))
    return tuple(sorted(found))


def _config_stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return (0, 0)
    return (about.st_mtime_ns, about.st_size)
