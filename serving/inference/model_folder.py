"""A model of a folder in the caller's own process, run as the sidecar runs it, for those who have all rows at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from featurestore.errors import InputError, NotFoundError
from serving.inference.model import load_model
from serving.inference.model_config import ModelConfig, read_config
from serving.inference.model_files import ModelFiles, scan
from serving.inference.repository import wanted
from serving.inference.signature import read_signature
from serving.inference.tensors import Tensor
from serving.sidecar import ModelDescription


class FolderModel:
    """The version of `root`/`name` that a sidecar would answer with, or the one asked for.

    NotFoundError when it is not there, ModelUnavailable when it cannot be loaded.
    """

    def __init__(self, root: Path, name: str, version: str) -> None:
        there = scan(root)
        if name not in there:
            raise NotFoundError("model", name, there, f"put it into {root}")
        self._config = read_config(there[name].folder)
        number = _number(there[name], self._config, version)
        folder = there[name].versions[number].folder
        self._model = load_model(folder, self._config)
        signature = read_signature(folder)
        self.description = ModelDescription(
            version=str(number),
            inputs=tuple((spec.name, spec.datatype, spec.shape) for spec in self._model.inputs),
            outputs=tuple(spec.name for spec in self._model.outputs),
            signature=None if signature is None else json.loads(signature.text),
        )

    @property
    def rows_max(self) -> int:
        """Most rows of one run."""
        return self._config.max_batch_rows

    def run(self, matrix: Tensor) -> Mapping[str, Tensor]:
        """The outputs by name; ModelFailed, ModelOutOfMemory."""
        ((name, _, _),) = self.description.inputs
        return dict(zip(self.description.outputs, self._model.run({name: matrix}), strict=True))

    def close(self) -> None:
        """Nothing to let go of."""


def _number(files: ModelFiles, config: ModelConfig, version: str) -> int:
    known = {str(number): number for number in files.versions}
    if version:
        if version not in known:
            raise NotFoundError(f"version of model {files.name!r}", version, known, "leave it out for the newest")
        return known[version]
    number = next(wanted(files, config), None)
    if number is None:
        raise InputError(f"model {files.name!r} has no version to answer with; put a model into {files.folder}/1")
    return number
