"""One model: which of its versions answers which request, and what becomes of copies for its shadow."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from featurestore.errors import FeatureStoreError, ModelUnavailable, NotFoundError
from serving.inference.loaded_version import LoadedVersion
from serving.inference.model import Feeds
from serving.inference.model_config import ModelConfig
from serving.inference.tally import Tally
from serving.inference.tensors import Tensor

log = logging.getLogger(__name__)

#: Copies under way; further ones are dropped, since a shadow must not cost those who wait.
SHADOWS_MAX = 64


@dataclass(frozen=True)
class Failure:
    """Why a version cannot be served, and the files that was true of."""

    stamp: object
    reason: str


@dataclass(eq=False)
class ServedModel:
    """The versions of a model. Only the event loop looks at it; `ModelRepository` changes it."""

    name: str
    config: ModelConfig = field(default_factory=ModelConfig)
    active: LoadedVersion | None = None
    versions: dict[int, LoadedVersion] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    #: Why there may be no version that answers; empty when nothing is wrong with the model as a whole.
    problem: str = ""
    #: Taken out of service by request.
    unloaded: bool = False
    loading: bool = False
    #: Version -> its numbers, which outlive it: they must not fall.
    tallies: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    _canary_due: float = 0.0
    _shadows: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Whether requests that name no version are answered."""
        return self.active is not None and self.active.ready

    def choose(self, version: str, request_id: str) -> LoadedVersion:
        """The version that answers a request; NotFoundError or ModelUnavailable when there is none."""
        if version:
            return self._named(version)
        if self.active is None:
            raise ModelUnavailable(f"model {self.name!r} is not served: {self.reason()}")
        canary = self.config.canary
        if canary is not None and canary.version in self.versions and self._is_canary(canary.share, request_id):
            chosen = self.versions[canary.version]
            return chosen if chosen.ready else self.active
        return self.active

    def reason(self) -> str:
        """Why no version answers."""
        if self.unloaded:
            return "it was unloaded; load it again"
        if self.problem:
            return self.problem
        told = [f"version {number}: {failure.reason}" for number, failure in sorted(self.failures.items())]
        return "; ".join(told) or "it has no version; put a model into a folder named 1"

    def shadow(self, chosen: LoadedVersion, feeds: Feeds, rows: int, outputs: Mapping[str, Tensor]) -> None:
        """Give the shadow version a copy of a request that was answered; nobody waits for it."""
        wanted = self.config.shadow
        if wanted is None or chosen is not self.active or wanted.version not in self.versions:
            return
        shadow = self.versions[wanted.version]
        if len(self._shadows) >= SHADOWS_MAX:
            shadow.tally.shadowed["dropped"] += 1
            return
        task = asyncio.create_task(_compare(shadow, feeds, rows, outputs, wanted.tolerance))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def _named(self, version: str) -> LoadedVersion:
        number = int(version) if version.isdecimal() and len(version) < 19 else 0
        if number in self.versions:
            return self.versions[number]
        if number in self.failures:
            raise ModelUnavailable(
                f"version {number} of model {self.name!r} is not served: {self.failures[number].reason}"
            )
        known = [str(one) for one in self.versions]
        raise NotFoundError(f"version of model {self.name!r}", version, known, "leave the version empty for the newest")

    def _is_canary(self, share: float, request_id: str) -> bool:
        if request_id:
            return crc32(request_id.encode()) < share * 2**32
        self._canary_due += share
        if self._canary_due < 1:
            return False
        self._canary_due -= 1
        return True


async def _compare(
    shadow: LoadedVersion, feeds: Feeds, rows: int, answered: Mapping[str, Tensor], tolerance: float
) -> None:
    try:
        outputs = await shadow.infer(feeds, rows)
    except FeatureStoreError as error:
        shadow.tally.shadowed["failed"] += 1
        log.debug("shadow version %d of model %r: %s", shadow.number, shadow.name, error)
        return
    same = outputs.keys() == answered.keys() and all(
        _alike(outputs[name], answered[name], tolerance) for name in outputs
    )
    shadow.tally.shadowed["same" if same else "different"] += 1


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f" and other.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=tolerance, atol=0.0, equal_nan=True))
    return bool(np.array_equal(one, other))
