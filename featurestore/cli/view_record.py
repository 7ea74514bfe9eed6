"""What happened to a view, for `describe`: its last breaches, its quarantine, how publishes kept the promise."""

from __future__ import annotations

from collections import Counter
from typing import Any

from featurestore.cli.output import instant
from featurestore.cli.repository import Repository
from featurestore.clock import timedelta_us, to_us
from featurestore.errors import StoreError
from featurestore.feature_view import FeatureView
from featurestore.freshness import view_freshness
from featurestore.registry.state import PublishRecord, Run

Row = dict[str, Any]

#: Runs looked through for breaches, and how many breaches and publishes are shown.
RUNS_MAX, SHOWN = 200, 5
_BREACHES = ("quarantined", "warned")


def last_breaches(repository: Repository, view: FeatureView) -> list[Row]:
    """The latest runs, newest first, in which rows broke the contract or the view failed."""
    rows = (_breach(run, view.ref) for run in repository.state.runs(RUNS_MAX))
    return [row for row in rows if row is not None][:SHOWN]


def _breach(run: Run, ref: str) -> Row | None:
    counts = run.counts.get(ref) or {}
    loaded = counts.get("loaded") or {}
    if not counts.get("error") and not any(loaded.get(name) for name in _BREACHES):
        return None
    return {
        "run": run.id,
        "started_at": instant(run.started_at_us),
        "read": loaded.get("read"),
        **{name: loaded.get(name) for name in _BREACHES},
        "breaches": loaded.get("breaches"),
        "error": counts.get("error"),
    }


def quarantined(repository: Repository, view: FeatureView) -> Row:
    """How many rows are in quarantine by rule, pushed ones too; `unknown` says why the offline store does not tell."""
    from featurestore.ingest.push import RUN as PUSH_RUN
    from featurestore.offline.quarantine import Chosen

    try:
        counts = repository.offline.quarantine.counts(Chosen(view=view.ref)).to_pylist()
    except StoreError as error:
        return {"unknown": str(error)}
    pushed = sum(row["rows"] for row in counts if row["run"] == PUSH_RUN)
    rules: Counter[str] = Counter()
    for row in counts:
        rules[f"{row['field']}:{row['rule']}"] += row["rows"]
    return {"rows": rules.total(), "pushed": pushed, "breaches": dict(rules)}


def freshness_record(repository: Repository, view: FeatureView) -> Row:
    """How the view stands against its promise now."""
    now_us = to_us(repository.clock.now())
    document = view_freshness(view, repository.state.publish_state(view.ref), now_us).document()
    return {name: value for name, value in document.items() if name != "view"}


def last_publishes(repository: Repository, view: FeatureView) -> list[Row]:
    """The latest publishes, newest first; `lag_s` is how far their data lay behind the instant they published."""
    records = repository.state.publish_log(view.ref, last=SHOWN)
    return [_publish(record, view) for record in reversed(records)]


def _publish(record: PublishRecord, view: FeatureView) -> Row:
    lag_us = None if record.watermark_us is None else max(record.horizon_to_us - record.watermark_us, 0)
    late = None if lag_us is None or view.freshness is None else lag_us > timedelta_us(view.freshness)
    return {
        "kind": record.kind,
        "as_of": instant(record.horizon_to_us),
        "watermark": instant(record.watermark_us),
        "lag_s": None if lag_us is None else lag_us / 1_000_000,
        "late": late,
        "rows_written": record.rows_written,
        "keys_repaired": record.keys_repaired,
        "acknowledged_at": instant(record.acknowledged_at_us),
    }
