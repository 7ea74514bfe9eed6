"""Made-up batches before a version is ready: the first runs of a model are slow, and a broken one shows here."""

from __future__ import annotations

import numpy as np

from featurestore.errors import ModelError, ModelUnavailable
from serving.inference.model import Feeds, Model
from serving.inference.model_config import ModelConfig
from serving.inference.tensors import ANY_SIZE, TensorSpec

#: Of each size: the first run allocates, the second is like those to come.
RUNS = 2


def runs_together(model: Model, config: ModelConfig) -> bool:
    """Whether requests to the model may share a run."""
    specs = [*model.inputs, *model.outputs]
    return config.batching and bool(model.inputs) and all(spec.has_rows for spec in specs)


def warm_up(model: Model, config: ModelConfig) -> None:
    """Run the model on zeros; ModelUnavailable when it fails, or does not keep its shapes."""
    together = runs_together(model, config)
    sizes = sorted({*config.warm_up_rows, config.max_batch_rows}) if together else [1]
    for rows in sizes:
        for _ in range(RUNS):
            try:
                outputs = model.run(_zeros(model, rows))
            except ModelError as error:
                raise ModelUnavailable(
                    f"it fails on {rows} made-up rows: {error}; mend the model, or lower max_batch_rows"
                ) from error
        if together and any(len(output) != rows for output in outputs):
            raise ModelUnavailable(
                f"its outputs have {[len(output) for output in outputs]} rows for {rows}, so requests cannot share a "
                "run; export it with one row out for each row in, or set batching = false"
            )


def _zeros(model: Model, rows: int) -> Feeds:
    return {spec.name: _zero(spec, rows) for spec in model.inputs}


def _zero(spec: TensorSpec, rows: int) -> np.ndarray:
    shape = [1 if size == ANY_SIZE else size for size in spec.shape]
    if spec.has_rows:
        shape[0] = rows
    return np.full(shape, b"", object) if spec.datatype == "BYTES" else np.zeros(shape, spec.dtype)
