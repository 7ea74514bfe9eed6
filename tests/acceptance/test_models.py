"""From a training set to predictions: export, sign, predict in batch, here or through a sidecar, and only what fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from featurestore import FeatureStore, FixedClock
from featurestore.clock import parse_instant
from featurestore.errors import InputError
from serving import batch_prediction
from serving.inference.server import SidecarOptions
from tests.acceptance.shop import NOW, SPINE, SPINE_SCHEMA, make_shop, rows_table
from tests.fix_cli import Run, prepare
from tests.unit.serving.inference.models import write_linear
from tests.unit.serving.inference.running import RunningSidecar

WIDTH = 5
WEIGHTS = np.array([0.5, 1, 2, 4, 0.125], np.float32)
PREDICT = ["predict", "--service", "basket", "--spine", "spine.parquet"]
SIGN = ["sign-model", "--manifest", "training.parquet.manifest.json", "--model"]


def write_mirror(folder: Path) -> None:
    """A model that answers with the matrix it is shown."""
    rows: list[str | int] = ["rows", WIDTH]
    node = helper.make_node("Identity", ["x"], ["matrix"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in ("x", "matrix")]
    graph = helper.make_graph([node], "mirror", tensors[:1], tensors[1:])
    folder.mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(made, folder / "model.onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop with an exported training set and signed models: `mirror`, and versions 1 and 2 of `late`."""
    shop = make_shop(tmp_path_factory.mktemp("models") / "shop")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(shop)
        prepare(
            shop,
            "get-historical-features",
            "--service",
            "basket",
            "--spine",
            "spine.parquet",
            "--out",
            "training.parquet",
        )
        write_mirror(shop / "models" / "mirror" / "1")
        write_linear(shop / "models" / "late" / "1", WEIGHTS)
        write_linear(shop / "models" / "late" / "2", WEIGHTS, bias=1000.0)
        for model in ("mirror/1", "late/1", "late/2"):
            prepare(shop, *SIGN, f"models/{model}")
    return shop


@pytest.fixture
def shop(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "shop"))


@pytest.fixture(scope="module")
def sidecar(trained: Path) -> Iterator[str]:
    """A sidecar over its models."""
    running = RunningSidecar(SidecarOptions(models=trained / "models", address="127.0.0.1:0"))
    try:
        yield running.address
    finally:
        running.stop()
        running.join()


def matrix_of(table: pa.Table) -> np.ndarray:
    """What `mirror` was shown."""
    return np.array(table.column("matrix").to_pylist(), np.float32).reshape(-1, WIDTH)


def bits(matrix: np.ndarray) -> list:
    """To compare NaN too."""
    return matrix.view(np.uint32).tolist()


# ------------------------------------------------------------------ the same features as online


def test_a_batch_as_of_now_is_bit_equal_to_what_serving_gives(shop: Path, inside: Run) -> None:
    asked = [row for row in SPINE if row[0] is not None]
    now = [(*row[:4], parse_instant(NOW, "now")) for row in [*asked, (77, "lisbon", 8, 3, None)]]
    spine = rows_table(now, SPINE_SCHEMA)
    pq.write_table(spine, shop / "now.parquet")
    command = ["predict", "--service", "basket", "--spine", "now.parquet", "--models", "models"]
    inside(shop, *command, "--model", "mirror", "--out", "m.parquet", "--now", NOW).ok()
    inside(shop, *command, "--model", "late/1", "--out", "l.parquet", "--now", NOW).ok()

    with FeatureStore(shop, clock=FixedClock(parse_instant(NOW, "now"))) as store:
        keys = {name: spine.column(name).combine_chunks() for name in ("customer_id", "shop", "sku", "hour")}
        online = store.get_online_features("basket", keys).to_matrix()
        with pytest.raises(InputError, match="give the feature service, then its keys"):
            store.get_online_features(keys, "basket")  # type: ignore[arg-type]
    assert bits(matrix_of(pq.read_table(shop / "m.parquet"))) == bits(online)
    assert np.isnan(online).any()
    answered = pq.read_table(shop / "l.parquet").column("y").to_numpy()
    np.testing.assert_allclose(answered, online @ WEIGHTS, rtol=1e-6)


def test_a_batch_sees_the_matrix_of_the_training_set(shop: Path, inside: Run) -> None:
    inside(shop, *PREDICT, "--models", "models", "--model", "mirror", "--out", "p.parquet").ok()
    with FeatureStore(shop) as store:
        trained_on = store.get_historical_features(shop / "spine.parquet", "basket").to_matrix()
    predicted = pq.read_table(shop / "p.parquet")
    assert bits(matrix_of(predicted)) == bits(trained_on)
    assert predicted.drop_columns(["matrix"]).equals(pq.read_table(shop / "spine.parquet"))


# ------------------------------------------------------------------ here, through a sidecar, in pieces


def test_a_sidecar_answers_as_the_model_does_here(shop: Path, inside: Run, sidecar: str) -> None:
    for out, where in {"here": ["--models", "models"], "there": ["--address", sidecar]}.items():
        done = inside(
            shop, *PREDICT, *where, "--model", "late", "--batch-rows", "2", "--out", f"{out}.parquet", "--json"
        )
        assert done.ok().json == {
            "path": f"{out}.parquet",
            "rows": 5,
            "model": "late",
            "version": "2",
            "outputs": ["y"],
        }
    here, there = (pq.read_table(shop / f"{name}.parquet").column("y").to_numpy() for name in ("here", "there"))
    assert bits(here) == bits(there)


def test_the_sidecar_of_the_settings_is_asked_when_none_is_named(shop: Path, inside: Run, sidecar: str) -> None:
    command = [*PREDICT, "--model", "late/2", "--out", "p.csv"]
    inside(shop, *command, FEATURESTORE_INFERENCE_ADDRESS=sidecar).ok()
    refused = inside(shop, *command)
    assert refused.code == 2
    assert "inference.address" in refused.err


@pytest.mark.parametrize("where", ["--models", "--address"])
def test_pieces_and_batches_of_any_size_give_the_same_file(
    shop: Path, inside: Run, sidecar: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    place = [where, sidecar if where == "--address" else "models"]
    command = [*PREDICT, *place, "--model", "mirror", "--with-status"]
    inside(shop, *command, "--out", "whole.arrow").ok()
    monkeypatch.setattr(batch_prediction, "SPINE_ROWS", 2)
    inside(shop, *command, "--batch-rows", "1", "--out", "pieces.arrow").ok()
    whole, pieces = (pa.ipc.open_file(shop / f"{name}.arrow").read_all() for name in ("whole", "pieces"))
    assert bits(matrix_of(whole)) == bits(matrix_of(pieces))
    assert whole.drop_columns(["matrix"]).equals(pieces.drop_columns(["matrix"]))
    assert whole.column("spending__status").to_pylist() == [
        "PRESENT",
        "PRESENT",
        "NOT_FOUND",
        "NOT_FOUND",
        "NOT_FOUND",
    ]


def test_a_spine_without_rows_gives_a_file_without_rows(shop: Path, inside: Run) -> None:
    pq.write_table(SPINE_SCHEMA.empty_table(), shop / "spine.parquet")
    inside(shop, *PREDICT, "--models", "models", "--model", "late", "--out", "p.parquet").ok()
    predicted = pq.read_table(shop / "p.parquet")
    assert (predicted.num_rows, predicted.schema.field("y").type) == (0, pa.float32())


def test_csv_has_one_cell_a_row_for_one_number_and_json_for_more(shop: Path, inside: Run) -> None:
    inside(shop, *PREDICT, "--models", "models", "--model", "late/1", "--out", "p.csv").ok()
    inside(shop, *PREDICT, "--models", "models", "--model", "mirror", "--out", "m.csv").ok()
    assert pa_csv.read_csv(shop / "p.csv").schema.field("y").type == pa.float64()
    assert len(json.loads(pa_csv.read_csv(shop / "m.csv").column("matrix")[0].as_py())) == WIDTH


# ------------------------------------------------------------------ the contract


def test_signing_tells_what_was_written_and_notes_who_reads_the_views(shop: Path, inside: Run) -> None:
    done = inside(shop, *SIGN, "models/late/2", "--json").ok().json
    manifest = json.loads((shop / "training.parquet.manifest.json").read_text())
    assert done["manifest_digest"] == manifest["digest"]["sha256"]
    assert done["signature"] == manifest["service"]["signature"]
    assert done["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
    assert [field["name"] for field in done["fields"]] == ["spent", "tier", "left", "price", "hour"]
    assert done["fill"] == {"spent": 0.0, "tier": None, "left": None, "price": None, "hour": None}
    assert json.loads((shop / "models/late/2/signature.json").read_text()) == {
        key: value for key, value in done.items() if key != "path"
    }
    assert "late/2" in inside(shop, "describe", "feature-view", "spending").ok().out


def test_a_service_that_changed_since_is_refused_by_both_commands(shop: Path, inside: Run, sidecar: str) -> None:
    declared = shop / "definitions" / "services.py"
    declared.write_text(declared.read_text().replace("fill(total=0.0)", "fill(total=-1.0)"))
    inside(shop, "apply").ok()
    predict = [*PREDICT, "--model", "late", "--out", "p.parquet"]
    for command in ([*SIGN, "models/late/1"], [*predict, "--models", "models"], [*predict, "--address", sidecar]):
        refused = inside(shop, *command)
        assert refused.code == 2
        assert "spent: fill was 0.0 and is -1.0" in refused.err
    assert not (shop / "p.parquet").exists()


def test_a_model_without_signature_is_fed_only_where_that_is_set(shop: Path, inside: Run) -> None:
    (shop / "models/late/2/signature.json").unlink()
    command = [*PREDICT, "--models", "models", "--model", "late", "--out", "p.parquet"]
    refused = inside(shop, *command)
    assert refused.code == 2
    assert "sign-model" in refused.err
    inside(shop, *command, FEATURESTORE_INFERENCE_UNSIGNED="true").ok()


def test_a_model_of_another_width_is_neither_signed_nor_fed(shop: Path, inside: Run) -> None:
    write_linear(shop / "models" / "narrow" / "1", WEIGHTS[:3])
    refused = inside(shop, *SIGN, "models/narrow/1")
    assert (refused.code, "gives one FP32 [-1, 5]" in refused.err) == (2, True)
    # Signed unseen, it is looked at when it is to be fed.
    inside(shop, *SIGN, "models/narrow/1", "--output", "y:FP32:-1,1").ok()
    refused = inside(shop, *PREDICT, "--models", "models", "--model", "narrow", "--out", "p.parquet")
    assert (refused.code, "gives one FP32 [-1, 5]" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*PREDICT, "--models", "models", "--model", "lat", "--out", "p.parquet"], "did you mean"),
        ([*PREDICT, "--models", "models", "--model", "late/9", "--out", "p.parquet"], "known: 1, 2"),
        ([*PREDICT, "--models", "nowhere", "--model", "late", "--out", "p.parquet"], "nowhere"),
        ([*PREDICT, "--models", "models", "--model", "late", "--out", "p.xlsx"], "no known suffix"),
        ([*PREDICT, "--models", "models", "--model", "late", "--address", "a:1", "--out", "p.csv"], "not allowed with"),
        ([*SIGN, "models/none/1"], "holds neither"),
        ([*SIGN, "models/late/1", "--output", "y"], "NAME:TYPE:SHAPE"),
        ([*SIGN, "models/late/1", "--output", "y:FP99:-1"], "FP99 is no type of the protocol; choose BOOL"),
        ([*SIGN, "models/late/1", "--output", "y:FP32:--1"], "NAME:TYPE:SHAPE"),
        (["sign-model", "--manifest", "spine.parquet", "--model", "models/late/1"], "is not a manifest"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(
    shop: Path, inside: Run, arguments: list[str], told: str
) -> None:
    refused = inside(shop, *arguments)
    assert refused.code == 2
    assert told in refused.err


def test_a_sidecar_that_is_not_there_is_an_unreachable_service(shop: Path, inside: Run) -> None:
    gone = inside(shop, *PREDICT, "--address", "127.0.0.1:1", "--model", "late", "--out", "p.parquet")
    assert gone.code == 3
    assert "no sidecar answers" in gone.err


def test_an_output_named_like_a_column_of_the_spine_is_refused(shop: Path, inside: Run) -> None:
    spine = pq.read_table(shop / "spine.parquet")
    pq.write_table(spine.append_column("y", pa.array([1.0] * spine.num_rows)), shop / "spine.parquet")
    refused = inside(shop, *PREDICT, "--models", "models", "--model", "late", "--out", "p.parquet")
    assert (refused.code, "column 'y'" in refused.err) == (2, True)
