"""Trains the model of late arrivals on an exported training set, and what it would be worth on a leaky one.

Logistic regression on the matrix that serving gives the model, exported to ONNX: one FP32 matrix in, for each row the
probability of arriving more than 15 minutes late out. The seed is fixed; October and November are held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import skl2onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx.common.data_types import FloatTensorType
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

Matrix = NDArray[np.float32]

#: Midnight in New York: what comes before September is trained on, September validates, what follows is held out.
VALIDATED, HELD_OUT = (datetime(2013, month, 1, 4, tzinfo=UTC) for month in (9, 10))
ROWS = 60_000
SEED = 20130101
INPUT, OUTPUT = "features", "late_probability"
OPSET = 17


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model and its area under the ROC curve on the rows of September as it saw them, and on those held out."""

    model: Pipeline
    validated: float
    held_out: float


def train(matrix: Matrix, late: NDArray[np.bool_], as_of: NDArray[np.datetime64], honest: Matrix) -> Trained:
    """Train on `matrix`; `honest` is what serving would have given for the same rows, and judges the held-out ones."""
    before, after = (np.datetime64(cut.replace(tzinfo=None)) for cut in (VALIDATED, HELD_OUT))
    seen = np.flatnonzero(as_of < before)
    chosen = np.sort(np.random.default_rng(SEED).choice(seen, min(ROWS, len(seen)), replace=False))
    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    model.fit(matrix[chosen], late[chosen])
    validation, held_out = (as_of >= before) & (as_of < after), as_of >= after
    return Trained(
        model=model,
        validated=_auc(model, matrix[validation], late[validation]),
        held_out=_auc(model, honest[held_out], late[held_out]),
    )


def write_onnx(model: Pipeline, folder: Path) -> Path:
    """Write `model.onnx` into a version's folder."""
    exported = skl2onnx.to_onnx(
        model,
        initial_types=[(INPUT, FloatTensorType([None, model.n_features_in_]))],
        options={"zipmap": False},
        target_opset=OPSET,
    )
    # Of the label and the probabilities of both classes, only that of being late is an answer.
    graph = exported.graph
    graph.initializer.append(helper.make_tensor("late", TensorProto.INT64, [1], [1]))
    graph.node.append(helper.make_node("Gather", [graph.output[1].name, "late"], [OUTPUT], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 1]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(exported.SerializeToString())
    return path


def _auc(model: Pipeline, matrix: Matrix, late: NDArray[np.bool_]) -> float:
    return float(roc_auc_score(late, model.predict_proba(matrix)[:, 1]))
