"""Batch prediction: matrices through a model, batch by batch, into a file. Memory is bounded by one piece of the spine.

The matrix is made from history as of each row, by the function that serving uses; the model sees it in batches of one
size, so that outputs are the same bits as those of a sidecar that is asked in batches of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.errors import InputError, ModelFailed
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.matrix import MatrixPlan
from featurestore.model_signature import misfit
from featurestore.offline.export import table_writer
from featurestore.offline.spine import read_spine, spine_tables
from featurestore.offline.training_set import TrainingSetQuery
from featurestore.outputs import common_join_keys, service_outputs
from featurestore.repository import Repository
from featurestore.retrieval import training_query, training_set
from featurestore.settings_serving import InferenceSettings
from serving.access.certificates import inference_files
from serving.inference.model_folder import FolderModel
from serving.inference.tensors import Tensor
from serving.remote_model import RemoteModel
from serving.sidecar import ModelDescription, SidecarAccess

Matrix = NDArray[np.float32]

#: Rows of the spine that are joined with history at a time.
SPINE_ROWS = 131_072
#: Rows that the model sees at a time.
BATCH_ROWS = 1024
#: Longest wait for one batch.
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Where a model is: in a folder of models, or at an address; no version means the one that answers."""

    name: str
    version: str = ""
    folder: Path | None = None
    address: str | None = None


class BatchModel(Protocol):
    """One version of a model, wherever it runs."""

    description: ModelDescription

    @property
    def rows_max(self) -> int | None:
        """Most rows of one run, where that is known."""
        ...

    def run(self, matrix: Tensor) -> Mapping[str, Tensor]:
        """The outputs by name."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchPrediction:
    """What was written: rows, and the columns that are outputs of `version` of the model."""

    path: Path
    rows: int
    version: str
    outputs: tuple[str, ...]


def predict(
    repository: Repository,
    spine: object,
    service: str,
    place: ModelPlace,
    path: Path,
    *,
    batch_rows: int | None = None,
    with_status: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BatchPrediction:
    """See `FeatureStore.predict`."""
    query = training_query(repository, service, None, with_status=with_status)
    inference = repository.settings.inference
    with closing(_opened(place, inference)) as model:
        _require_fit(place.name, model.description, query, unsigned=inference.unsigned)
        pieces = _pieces(repository, query, spine)
        return _predict_into(path, pieces, model, batch_rows or BATCH_ROWS, progress)


def _opened(place: ModelPlace, inference: InferenceSettings) -> BatchModel:
    if place.folder is not None and place.address is not None:
        raise InputError("a model lies in a folder, or answers at an address; name one of them")
    if place.folder is not None:
        return FolderModel(place.folder, place.name, place.version)
    address = place.address or inference.address
    if address is None:
        raise InputError(
            "no model can be found: name the folder of models, or the address of a sidecar (or set inference.address)"
        )
    access = SidecarAccess(
        address=address,
        timeout_s=max(inference.timeout_s, TIMEOUT_S),
        retries=inference.retries,
        tls=inference_files(inference, address),
    )
    return RemoteModel(access, place.name, place.version)


def _pieces(repository: Repository, query: TrainingSetQuery, spine: object) -> Iterator[tuple[pa.Table, Matrix]]:
    """The spine in pieces, with statuses where they are asked for, and the matrix of each."""
    keys = common_join_keys(query.views.values())
    request = {field.name: field.dtype for field in query.service.request_fields}
    first = 0
    for piece in spine_tables(spine, keys, request, SPINE_ROWS):
        try:
            answer = training_set(repository, query, read_spine(piece, keys, request))
            matrix = answer.to_matrix()
        except InputError as error:
            if not first:
                raise
            raise InputError(f"in the spine's rows from {first:,} on, counted from there: {error}") from error
        features = {output.name for output in answer.outputs if output.view}
        yield answer.table.drop_columns(sorted(features)), matrix
        first += piece.num_rows


def _require_fit(name: str, model: ModelDescription, query: TrainingSetQuery, *, unsigned: bool) -> None:
    service, views = query.service, query.views
    if model.signature is not None:
        if told := misfit(name, model.signature, service, views):
            raise InputError(told)
    elif not unsigned:
        raise InputError(
            f"model {name!r} has no signature that says what it was trained on; write it with `featurestore "
            "sign-model`, or set inference.unsigned = true to feed it all the same"
        )
    require_one_matrix(name, [(datatype, shape) for _, datatype, shape in model.inputs], service, views)


def require_one_matrix(
    name: str,
    taken: Sequence[tuple[str, tuple[int, ...]]],
    service: FeatureService,
    views: Mapping[str, FeatureView],
) -> None:
    """InputError unless a model's inputs (datatype, shape) are the one matrix of a service."""
    columns = service_outputs(service, views)
    width = MatrixPlan.compile([(column.name, column.field, column.fill) for column in columns]).width
    if len(taken) != 1 or taken[0][0] != "FP32" or taken[0][1][1:] not in ((width,), (-1,)):
        listed = ", ".join(f"{datatype} {list(shape)}" for datatype, shape in taken)
        raise InputError(
            f"model {name!r} takes {listed}, feature service {service.name!r} gives one FP32 [-1, {width}]; export it "
            "with one matrix as its input"
        )


def _predict_into(
    path: Path,
    pieces: Iterable[tuple[pa.Table, Matrix]],
    model: BatchModel,
    batch_rows: int,
    progress: Callable[[int], None] | None,
) -> BatchPrediction:
    """Write each piece's table with the outputs of its matrix beside it; `progress` is told the rows done.

    The file is complete, or not there. InputError when an output has the name of a column.
    """
    waiting = iter(pieces)
    first = _predicted(*next(waiting), model, batch_rows)
    rows = 0
    with table_writer(path, first.schema) as write:
        for table in chain([first], (_predicted(*piece, model, batch_rows) for piece in waiting)):
            write(table)
            rows += table.num_rows
            if progress is not None:
                progress(rows)
    return BatchPrediction(
        path=path, rows=rows, version=model.description.version, outputs=tuple(model.description.outputs)
    )


def _predicted(table: pa.Table, matrix: Matrix, model: BatchModel, batch_rows: int) -> pa.Table:
    for name, tensor in _outputs(matrix, model, min(batch_rows, model.rows_max or batch_rows)).items():
        if name in table.column_names:
            raise InputError(f"the spine already has a column {name!r}, which the model gives too; rename it there")
        table = table.append_column(name, _column(name, tensor))
    return table


def _outputs(matrix: Matrix, model: BatchModel, size: int) -> dict[str, Tensor]:
    if not len(matrix):
        # Only the model knows the types of its outputs.
        nothing = model.run(np.zeros((1, matrix.shape[1]), np.float32))
        return {name: tensor[:0] for name, tensor in nothing.items()}
    parts: list[Mapping[str, Tensor]] = []
    for start in range(0, len(matrix), size):
        batch = matrix[start : start + size]
        outputs = model.run(batch)
        for name, tensor in outputs.items():
            if tensor.shape[:1] != (len(batch),):
                raise ModelFailed(
                    f"output {name!r} has shape {list(tensor.shape)} for {len(batch)} rows; export the model with one "
                    "row out for each row in"
                )
        parts.append(outputs)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _column(name: str, tensor: Tensor) -> pa.Array:
    """One value a row: a number or text, or lists of them where the model gives more."""
    if tensor.dtype.kind in "OUS":
        values = pa.array([text.encode() if isinstance(text, str) else text for text in tensor.ravel()], pa.binary())
        try:
            array = values.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise ModelFailed(f"output {name!r} is not UTF-8: {error}") from error
    else:
        array = pa.array(tensor.ravel())
    sizes = [size for size in tensor.shape[1:] if size != 1]
    for size in reversed(sizes):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
