"""How the last load of each view kept its contract, from the records of runs.

A run that read nothing says nothing, and a replay judges old rows: neither takes the place of a load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurestore.registry.state import Run

#: Runs looked through. What is older is known only to processes that saw it.
RUNS_MAX = 200
#: What becomes of rows that break the contract, and the rows that were judged.
OUTCOMES = ("read", "quarantined", "warned")


class Runs(Protocol):
    """The part of the state store that is read here."""

    def runs(self, limit: int) -> Sequence[Run]:
        """The latest runs, newest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class LastLoad:
    """Of one view: rows by outcome and by broken rule ("field:rule"), and whether its last run failed."""

    rows: Mapping[str, int]
    breaches: Mapping[str, int]
    failed: bool


class LastLoads:
    """The last loads by name@version; what runs told that are no longer looked through is remembered."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._known: dict[str, LastLoad] = {}

    def read(self) -> Mapping[str, LastLoad]:
        """As the runs tell now; StoreUnreachable."""
        known = dict(self._known)  # another thread may hold the former
        for run in reversed(self._runs.runs(RUNS_MAX)):  # the newest has the last word
            for ref in run.counts:
                known[ref] = _after(run, ref, known.get(ref))
        self._known = known
        return known


def _after(run: Run, ref: str, before: LastLoad | None) -> LastLoad:
    counts = run.counts[ref]
    loaded = counts.get("loaded") or {}
    failed = bool(counts.get("error"))
    if run.kind == "replay" or not loaded.get("read"):
        return LastLoad(rows=before.rows if before else {}, breaches=before.breaches if before else {}, failed=failed)
    return LastLoad(
        rows={name: loaded.get(name, 0) for name in OUTCOMES}, breaches=loaded.get("breaches") or {}, failed=failed
    )
