"""The facade: one object that does from Python what the command does from a shell. A composition root.

Names follow Feast where the meaning is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.clock import Clock, SystemClock, aware_utc, to_us
from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.repository import Repository

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.freshness import ViewFreshness
    from featurestore.ingest.push import PushResult
    from featurestore.model_signature import ModelOutput, ModelSignature
    from featurestore.offline.training_set import TrainingSet
    from featurestore.parity.report import ViewParity
    from featurestore.parity.served import ServedParity
    from featurestore.quality.validation import ValidationResult
    from featurestore.registry.apply import ApplyResult
    from featurestore.registry.plan import Plan
    from featurestore.served_log import ReadLog
    from materialization.job import Request, RunOutcome
    from serving.batch_prediction import BatchPrediction
    from serving.response import OnlineResponse


class FeatureStore:
    """A repository opened for work: `FeatureStore("repo")`, a folder that holds featurestore.toml.

    A context manager; `close` lets go of the stores. `clock` sets the time that all work agrees on.
    """

    def __init__(self, path: str | Path = ".", *, clock: Clock | None = None) -> None:
        from featurestore.settings import load_settings

        self.repository = Repository(load_settings(Path(path)), clock or SystemClock())

    @classmethod
    def of(cls, repository: Repository) -> FeatureStore:
        """The facade of a repository that is open already."""
        store = cls.__new__(cls)
        store.repository = repository
        return store

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the stores."""
        self.repository.close()

    # ------------------------------------------------------------------ definitions

    def plan(self) -> Plan:
        """What `apply` would change."""
        from featurestore.registry.plan import make_plan

        repository = self.repository
        repository.finish_interrupted_apply()
        recent = timedelta(days=repository.settings.registry.readers_days)
        rows = repository.offline.history_rows
        return make_plan(repository.registry, repository.state, repository.definitions, rows, recent)

    def apply(
        self, *, allow_empty: bool = False, allow_data_loss: bool = False, allow_in_use: bool = False
    ) -> ApplyResult:
        """Make the definitions below the repository effective; EvolutionError when that would break readers."""
        from featurestore.registry.apply import apply
        from featurestore.registry.holder import user_name

        repository = self.repository
        return apply(
            repository.registry,
            repository.state,
            repository.offline,
            repository.online,
            repository.definitions,
            who=user_name(),
            clock=repository.clock,
            allow_empty=allow_empty,
            allow_data_loss=allow_data_loss,
            allow_in_use=allow_in_use,
            recent=timedelta(days=repository.settings.registry.readers_days),
        )

    # ------------------------------------------------------------------ materialization

    def materialize(
        self,
        start: datetime,
        end: datetime,
        *,
        views: Sequence[str] | None = None,
        load: bool = True,
        publish: bool = True,
        repair: bool = False,
    ) -> RunOutcome:
        """Load the event times [start, end) of the sources and publish what is due; see `run`."""
        from materialization.job import Request

        since, until = aware_utc(start, "start"), aware_utc(end, "end")
        return self.run(Request(start=since, end=until, load=load, publish=publish, repair=repair), views=views)

    def materialize_incremental(
        self,
        end: datetime | None = None,
        *,
        views: Sequence[str] | None = None,
        load: bool = True,
        publish: bool = True,
        repair: bool = False,
    ) -> RunOutcome:
        """Load what arrived (event times before `end`, where given) and publish what is due; see `run`."""
        from materialization.job import Request

        until = None if end is None else aware_utc(end, "end")
        return self.run(Request(end=until, load=load, publish=publish, repair=repair), views=views)

    def run(
        self,
        request: Request,
        *,
        views: Sequence[str] | None = None,
        progress: Callable[[str, str, int], None] | None = None,
    ) -> RunOutcome:
        """A materialization run over `views` (names or refs; all when None). Its outcome holds each view's error."""
        from materialization.job import Materializer

        self.repository.finish_interrupted_apply()
        repository, settings = self.repository, self.repository.settings
        materializer = Materializer(
            repository=settings.root,
            registry=repository.registry,
            state=repository.state,
            offline=repository.offline,
            online=repository.online,
            clock=repository.clock,
            batch_rows=settings.materialization.batch_rows,
            lease_s=settings.materialization.lease_s,
            progress=progress or _silent,
            parallel=settings.materialization.parallel_views,
            inbox=repository.inbox,
        )
        outcome = materializer.run(self._chosen(views), request)
        if request.publish and settings.freshness.webhook is not None:
            from featurestore.freshness_webhook import check_freshness

            check_freshness(repository)
        return outcome

    # ------------------------------------------------------------------ quarantine

    def quarantine(
        self, view: str, *, rule: str = "", run: str = "", id: str = "", limit: int | None = None
    ) -> pa.Table:
        """The quarantined rows of a view in the order of their arrival."""
        from featurestore.offline.quarantine import Chosen

        chosen = Chosen(view=self.repository.quarantined_view(view).ref, rule=rule, run=run, id=id)
        return self.repository.offline.quarantine.rows(chosen, limit=limit)

    def quarantine_counts(self, *, rule: str = "", run: str = "") -> pa.Table:
        """How many rows are quarantined, by view, rule, field and run."""
        from featurestore.offline.quarantine import Chosen

        self.repository.finish_interrupted_apply()
        self.repository.drain(self.repository.registry.views().values())
        return self.repository.offline.quarantine.counts(Chosen(rule=rule, run=run))

    def replay_quarantine(
        self,
        view: str,
        *,
        rule: str = "",
        run: str = "",
        into: str | None = None,
        progress: Callable[[str, str, int], None] | None = None,
    ) -> RunOutcome:
        """Pass quarantined rows through the gate again and publish; `into`: another version of the view. See `run`."""
        from featurestore.offline.quarantine import Chosen
        from materialization.job import Request

        kept = self.repository.quarantined_view(view)
        target = kept if into is None else self.repository.registry.view(into)
        if target.name != kept.name:
            raise InputError(f"rows of {kept.ref} cannot become rows of {target.ref}: name a version of {kept.name}")
        return self.run(
            Request(replay=Chosen(view=kept.ref, rule=rule, run=run)), views=[target.ref], progress=progress
        )

    def drop_quarantine(self, view: str, *, rule: str = "", run: str = "") -> int:
        """Remove quarantined rows for good; returns how many. StoreBusy while somebody writes the view."""
        from featurestore.offline.quarantine import Chosen
        from materialization.lease import held_lease

        repository, ref = self.repository, self.repository.quarantined_view(view).ref
        with held_lease(repository.state, ref, repository.settings.materialization.lease_s):
            return repository.offline.quarantine.drop(Chosen(view=ref, rule=rule, run=run))

    # ------------------------------------------------------------------ push

    def push(self, view: str, data: object) -> PushResult:
        """Push rows to a view, by name or name@version: through gate, durable store and online store.

        `data` is an Arrow table, a pandas or polars frame, or name -> column of values; its columns are named as in
        the view's source. The result says of each row what became of it; InputError when a column is missing.
        """
        from featurestore.ingest.push import as_table

        self.repository.finish_interrupted_apply()
        return self.repository.pusher.push(view, as_table(data))

    # ------------------------------------------------------------------ retrieval

    def get_historical_features(
        self,
        spine: object,
        service: str | None = None,
        *,
        features: Sequence[str] | None = None,
        knowledge: str = "created",
        full_feature_names: bool = False,
        with_status: bool = False,
    ) -> TrainingSet:
        """What was known of each spine row's entities at its `as_of`.

        `spine` is a path (Parquet, CSV, Arrow), an Arrow table, a pandas or a polars frame. `knowledge="event"` takes
        a row as known from its event time, for honest backfills; "as_served" from the publish that brought it online.
        `with_status` adds `<view>__status` and `<view>__age_us` columns, and as served `<view>__uncertain`.
        """
        from featurestore.offline.spine import read_spine
        from featurestore.outputs import common_join_keys
        from featurestore.retrieval import training_query, training_set

        query = training_query(
            self.repository,
            service,
            features,
            knowledge=knowledge,
            full_feature_names=full_feature_names,
            with_status=with_status,
        )
        request = {field.name: field.dtype for field in query.service.request_fields}
        read = read_spine(spine, common_join_keys(query.views.values()), request)
        return training_set(self.repository, query, read, None)

    def get_historical_features_as_of(
        self,
        as_of: datetime,
        service: str | None = None,
        *,
        features: Sequence[str] | None = None,
        knowledge: str = "created",
        full_feature_names: bool = False,
        with_status: bool = False,
    ) -> TrainingSet:
        """One row per entity known at `as_of`, in the order of the join keys, with what was known of it then."""
        from featurestore.offline.known_entities import known_entities
        from featurestore.offline.spine import spine_as_of
        from featurestore.retrieval import training_query, training_set

        query = training_query(
            self.repository,
            service,
            features,
            knowledge=knowledge,
            full_feature_names=full_feature_names,
            with_status=with_status,
        )
        instant = aware_utc(as_of, "as_of")
        with self.repository.offline.open(write=False):
            entities = known_entities(self.repository.offline, query, to_us(instant))
            return training_set(self.repository, query, spine_as_of(entities, to_us(instant)), instant)

    def verify_manifest(self, manifest: str | Path, *, spine: object = None) -> list[str]:
        """Rebuild a training set from its manifest; the differences in words, none when it came out the same.

        The file beside the manifest, where it is still there, must be the one that was written.
        """
        from featurestore.offline.export import file_differences
        from featurestore.offline.manifest import differences, read_manifest
        from featurestore.offline.rebuild import rebuild

        self.repository.finish_interrupted_apply()
        recorded = read_manifest(Path(manifest))
        rebuilt = rebuild(self.repository.offline, recorded, Path(manifest), spine)
        return differences(recorded, rebuilt) + file_differences(recorded, Path(manifest))

    def get_online_features(
        self,
        service: str | None = None,
        keys: Mapping[str, object] | Sequence[Mapping[str, str]] | Path | None = None,
        *,
        features: Sequence[str] | None = None,
        max_age: timedelta | None = None,
        full_feature_names: bool = False,
    ) -> OnlineResponse:
        """The serving answer, read from the online store directly.

        `keys` holds a column of values for each join key and request field; it may be rows of text, as the command
        takes them, or the path of a Parquet, CSV or Arrow file. Without a service, name them: `keys=`, `features=`.
        """
        if keys is None or not isinstance(service, str | None):
            raise InputError(
                "give the feature service, then its keys: get_online_features('ranking', {'driver_id': [1001, 1002]}); "
                "or features and keys by name: get_online_features(features=['view:field'], keys=...)"
            )
        from serving.local import answer, answer_file, answer_texts, local_lookup

        repository = self.repository
        repository.finish_interrupted_apply()
        lookup = local_lookup(
            repository.registry,
            repository.state,
            repository.online,
            repository.clock,
            service,
            features,
            full_feature_names=full_feature_names,
        )
        if isinstance(keys, Path):
            return answer_file(lookup, keys, max_age)
        if isinstance(keys, Mapping):
            return answer(lookup, keys, max_age)
        return answer_texts(lookup, keys, max_age)

    # ------------------------------------------------------------------ models

    def sign_model(
        self, manifest: str | Path, folder: str | Path, *, outputs: Sequence[ModelOutput] = ()
    ) -> ModelSignature:
        """Write signature.json into a version's folder (MODELS/MODEL/VERSION), from the manifest it was trained on.

        Without `outputs` the model is loaded and asked. InputError when it does not take the service's matrix, or when
        the service has another signature by now.
        """
        from serving.signing import sign_model

        return sign_model(self.repository, Path(manifest), Path(folder), outputs)

    def predict(
        self,
        spine: object,
        service: str,
        model: str,
        *,
        out: str | Path,
        models: str | Path | None = None,
        address: str | None = None,
        version: str = "",
        batch_rows: int | None = None,
        with_status: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> BatchPrediction:
        """Write the spine's columns and what a model says of the features that were known of each row at its `as_of`.

        The model lies in the folder `models`, or answers at `address` (else at `inference.address`). A spine in a file
        is read piece by piece. InputError for a model that was not trained on the service.
        """
        from serving.batch_prediction import ModelPlace, predict

        return predict(
            self.repository,
            spine,
            service,
            ModelPlace(name=model, version=version, folder=None if models is None else Path(models), address=address),
            Path(out),
            batch_rows=batch_rows,
            with_status=with_status,
            progress=progress,
        )

    # ------------------------------------------------------------------ proof

    def verify(self, service: str | None = None, *, sample: int | None = None) -> list[ViewParity]:
        """Compare the online store with history, entity by entity, for the views of a service or for all.

        `sample`: of each view only so many entities, the same every time. InputError unless it is positive.
        """
        from featurestore.outputs import pinned_views
        from featurestore.parity.rows import RowReader
        from featurestore.parity.verify import Verifier

        if sample is not None and sample < 1:
            raise InputError(f"a sample of {sample} entities proves nothing; take at least 1")

        self.repository.finish_interrupted_apply()
        repository, registry = self.repository, self.repository.registry
        views = registry.views()
        chosen = views if service is None else pinned_views(registry.service(service), views)
        repository.drain(chosen.values())
        now_us = to_us(repository.clock.now())
        return [
            Verifier(
                project=registry.project,
                reader=RowReader(
                    view=view,
                    schema_id=registry.schema_id(view.ref),
                    schemas=registry.row_schemas(view.ref),
                    offline=repository.offline,
                    inbox=repository.inbox,
                ),
                online=repository.online,
                batch_rows=repository.settings.materialization.batch_rows,
                sample=sample,
            ).verify(repository.state.publish_state(view.ref), now_us)
            for view in chosen.values()
        ]

    def verify_served(self, path: str | Path, service: str | None = None) -> tuple[list[ServedParity], ReadLog]:
        """Recompute from history what a served log (a file, or a folder of them) says that clients received.

        `service`: only the records of this service. The second part tells what the log lacks.
        """
        from featurestore.offline.served import PublishLog
        from featurestore.parity.served import ServedVerifier, verify_records
        from featurestore.served_log import ReadLog, read_served_log, records_of

        self.repository.finish_interrupted_apply()
        repository = self.repository
        views = repository.registry.views()
        repository.drain(views.values())
        verifiers = {
            ref: ServedVerifier(
                project=repository.registry.project,
                view=view,
                offline=repository.offline,
                log=PublishLog.of_records(repository.state.publish_log(ref)),
                near_cache_us=round(repository.settings.near_cache.bound_s * 1e6),
            )
            for ref, view in views.items()
        }
        read = ReadLog()
        records = records_of(read_served_log(Path(path), read), service)
        return verify_records(records, verifiers, repository.settings.materialization.batch_rows), read

    def validate(self, view: str) -> ValidationResult:
        """Judge the whole history of a view, by name or name@version, by its contract as a Great Expectations suite."""
        from featurestore.quality.validation import validate

        repository = self.repository
        repository.finish_interrupted_apply()
        chosen, views = repository.registry.view(view), repository.registry.views()
        repository.drain(views.values() if chosen.references else [chosen])
        batch_rows = repository.settings.materialization.batch_rows
        return validate(chosen, views, repository.offline, batch_rows, repository.clock.now())

    def freshness(self, service: str | None = None, *, views: Sequence[str] | None = None) -> list[ViewFreshness]:
        """How old the published data is against what is promised: of a service's views, of those named, or of all."""
        from featurestore.freshness import freshness_of
        from featurestore.outputs import pinned_views

        repository = self.repository
        repository.finish_interrupted_apply()
        registry = repository.registry
        if service is not None and views is not None:
            raise InputError("name a feature service, or views; one of the two")
        chosen = self._chosen(views)
        if service is not None:
            chosen = list(pinned_views(registry.service(service), registry.views()).values())
        return freshness_of(chosen, repository.state, to_us(repository.clock.now()))

    # ------------------------------------------------------------------ inside

    def _chosen(self, names: Sequence[str] | None) -> list[FeatureView]:
        """The views named, each once; a bare name means every version of it."""
        views = self.repository.registry.views()
        if names is None:
            return list(views.values())
        chosen: dict[str, FeatureView] = {}
        for name in names:
            versions = {ref: view for ref, view in views.items() if name in (ref, view.name)}
            chosen |= versions or {name: self.repository.registry.view(name)}
        return list(chosen.values())


def _silent(view: str, step: str, rows: int) -> None:
    """Progress that nobody watches."""
