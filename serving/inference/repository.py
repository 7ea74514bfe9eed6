"""The models of a folder: loaded, followed as it changes, switched without a request that notices.

A version is loaded and warm beside the one that answers; then one assignment puts it in its place, and the old one goes
when the requests it has are answered. What fails to load leaves everything as it was, and is tried again when its files
change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from featurestore.errors import ConfigError, ModelUnavailable, NotFoundError
from serving.inference.loaded_version import LoadedVersion, load_version
from serving.inference.model_config import ModelConfig, read_config
from serving.inference.model_files import ModelFiles, VersionFiles, scan
from serving.inference.served_model import Failure, ServedModel

log = logging.getLogger(__name__)


class ModelRepository:
    """All models, by name. Only the event loop uses it; `changed` is called when a model's readiness may be another."""

    def __init__(self, root: Path, changed: Callable[[ServedModel], None]) -> None:
        self._root, self._changed = root, changed
        self.models: dict[str, ServedModel] = {}
        #: What each model was last brought in line with.
        self._seen: dict[str, ModelFiles] = {}
        self._pending: dict[str, ModelFiles] = {}
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def model(self, name: str) -> ServedModel:
        """The model; NotFoundError lists those there are."""
        if name not in self.models:
            raise NotFoundError("model", name, self.models)
        return self.models[name]

    async def refresh(self, *, settled: bool = True) -> None:
        """Bring everything in line with the folder.

        With `settled`, files that changed since the last look are left to the next: somebody may still be copying.
        """
        async with self._lock:
            there = await asyncio.to_thread(scan, self._root)
            for name in [name for name in self.models if name not in there]:
                self._remove(name)
            for name, files in there.items():
                if self._seen.get(name) == files:
                    continue
                if settled and self._pending.get(name) != files:
                    self._pending[name] = files
                    continue
                self._pending.pop(name, None)
                await self._bring(files)

    async def load(self, name: str) -> None:
        """Bring one model in line with its folder now, even if it was unloaded; ModelUnavailable when that fails."""
        async with self._lock:
            there = await asyncio.to_thread(scan, self._root)
            if name not in there:
                raise NotFoundError("model", name, there, f"put it into {self._root}")
            if name in self.models:
                self.models[name].unloaded = False
                self.models[name].failures.clear()
            await self._bring(there[name])
        model = self.models[name]
        if model.problem or model.failures or not model.ready:
            raise ModelUnavailable(f"model {name!r}: {model.reason()}")

    async def unload(self, name: str) -> None:
        """Take a model out of service until it is loaded again."""
        model = self.model(name)
        async with self._lock:
            model.unloaded = True
            self._keep(model, {}, None)
        log.info("model %r is unloaded", name)

    async def close(self) -> None:
        """Let every version finish."""
        for name in list(self.models):
            self._remove(name)
        await asyncio.gather(*self._retiring)

    def _remove(self, name: str) -> None:
        model = self.models.pop(name)
        self._seen.pop(name, None)
        model.problem = "its folder is gone"
        self._keep(model, {}, None)
        log.info("model %r is gone", name)

    async def _bring(self, files: ModelFiles) -> None:
        model = self.models.setdefault(files.name, ServedModel(files.name))
        self._seen[files.name] = files
        if model.unloaded:
            return
        try:
            config = await asyncio.to_thread(read_config, files.folder)
        except ConfigError as error:
            # It goes on as it was.
            model.problem = str(error)
            log.warning("model %r: %s", model.name, error)
            self._changed(model)
            return
        model.problem, model.loading = "", True
        try:
            await self._switch(model, files, config)
        finally:
            model.loading = False
            self._changed(model)

    async def _switch(self, model: ServedModel, files: ModelFiles, config: ModelConfig) -> None:
        model.failures = {number: failure for number, failure in model.failures.items() if number in files.versions}
        kept: dict[int, LoadedVersion] = {}
        for number in _wanted(files, config):
            if len(kept) >= config.keep_versions:
                break
            if version := await self._version(model, files.versions[number], config):
                kept[number] = version
        active = next(iter(kept.values()), None)
        if active is None and model.active is not None and not _is_empty(files):
            # Nothing that could take its place works.
            active = model.active
            kept[active.number] = active
        for role in (config.canary, config.shadow):
            if role is not None and role.version in files.versions:
                if version := await self._version(model, files.versions[role.version], config):
                    kept[role.version] = version
            elif role is not None:
                model.problem = f"version {role.version} of its config.toml has no folder"
        model.config = config
        self._keep(model, kept, active)

    async def _version(self, model: ServedModel, files: VersionFiles, config: ModelConfig) -> LoadedVersion | None:
        """The version as its files are now, in memory; None when they cannot be served."""
        stamp = (files.stamp, config.loaded_alike())
        loaded, failure = model.versions.get(files.number), model.failures.get(files.number)
        if loaded is not None and loaded.stamp == stamp and loaded.ready:
            return loaded
        if failure is not None and failure.stamp == stamp:
            return None
        tally = model.tallies[str(files.number)]
        try:
            version = await load_version(model.name, files, config, tally, lambda: self._changed(model))
        except ModelUnavailable as error:
            model.failures[files.number] = Failure(stamp, str(error))
            log.warning("version %d of model %r cannot be served: %s", files.number, model.name, error)
            return None
        model.failures.pop(files.number, None)
        log.info("version %d of model %r is ready on %s", files.number, model.name, version.model.device)
        return version

    def _keep(self, model: ServedModel, kept: dict[int, LoadedVersion], active: LoadedVersion | None) -> None:
        """From here on these answer; the others finish what they have."""
        gone = [version for version in model.versions.values() if version not in kept.values()]
        model.versions, model.active = kept, active
        for version in gone:
            task = asyncio.create_task(version.batcher.drain())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        self._changed(model)


def _wanted(files: ModelFiles, config: ModelConfig) -> Iterator[int]:
    """The versions to answer with, the best first."""
    if config.version is not None:
        if config.version in files.versions:
            yield config.version
        return
    apart = {role.version for role in (config.canary, config.shadow) if role is not None}
    yield from (number for number in sorted(files.versions, reverse=True) if number not in apart)


def _is_empty(files: ModelFiles) -> bool:
    return not files.versions
