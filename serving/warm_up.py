"""A worker gets warm before it takes requests: the near cache is preloaded, as far as the settings ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featurestore.errors import FeatureStoreError
from featurestore.feature_view import FeatureView
from featurestore.online.base import OnlineStore
from serving.hot_keys import HotKeys
from serving.near_cache import NearCache
from serving.preload import Policy, Preload, PreloadLate

log = logging.getLogger(__name__)

#: How often requested keys are counted and written, and the pause before a failed preload is tried again.
COUNT_S, AGAIN_S = 10.0, 1.0
#: Workers of one server at most.
SLOTS = 256


@dataclass(frozen=True, kw_only=True)
class NearCacheOptions:
    """How large a near cache is and how sure; `unconfirmed_max_s`: how long it answers without a store, 0 for never."""

    bytes_max: int
    bound_s: float = 1.0
    unconfirmed_max_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PreloadOptions:
    """What is loaded first; `folder` holds the hot keys. A `required` preload is tried until it succeeds."""

    policies: tuple[Policy, ...] = ()
    keys_file: Path | None = None
    folder: Path = Path("data/serving")
    timeout_s: float = 60.0
    required: bool = False


async def preload(
    cache: NearCache, store: OnlineStore, views: Mapping[str, FeatureView], options: PreloadOptions, hot: HotKeys
) -> None:
    """Fill the cache; nobody else may use it meanwhile. Raises nothing that a store does: a cold worker serves too."""
    remembered = await asyncio.to_thread(hot.load)
    while options.policies:
        began, given_up = time.monotonic(), threading.Event()
        late = partial(_is_over, given_up, float("inf") if options.required else began + options.timeout_s)
        work = Preload(
            cache=cache,
            store=store,
            views=views,
            policies=options.policies,
            hot=remembered,
            keys_file=options.keys_file,
            late=late,
        )
        try:
            rows = await asyncio.to_thread(work.run)
            log.info("preload: %s rows in %.1f s", f"{rows:,}", time.monotonic() - began)
            return
        except PreloadLate:
            log.warning("preload: stopped after %g s with %s entries; serving", options.timeout_s, f"{len(cache):,}")
            return
        except FeatureStoreError as error:
            if not options.required:
                log.warning("preload: failed with %s entries; serving: %s", f"{len(cache):,}", error)
                return
            log.warning("preload: failed, not ready, tried again in %g s: %s", AGAIN_S, error)
        finally:
            given_up.set()  # a thread does not notice that nobody waits for it any more
        await asyncio.sleep(AGAIN_S)


def _is_over(given_up: threading.Event, moment: float) -> bool:
    return given_up.is_set() or time.monotonic() > moment


@asynccontextmanager
async def counting(hot: HotKeys) -> AsyncIterator[None]:
    """Meanwhile, what is noted is counted and written now and then, and at the end."""
    task = asyncio.create_task(_count(hot))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(_fold_and_save, hot)


@contextmanager
def hot_keys(folder: Path) -> Iterator[HotKeys]:
    """The hot keys of this process: in a file that no other living worker writes."""
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(SLOTS):
        lock = os.open(folder / f"hot-keys-{slot}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield HotKeys(folder, slot)
            return
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
    raise AssertionError(f"more than {SLOTS} workers write to {folder}")


async def _count(hot: HotKeys) -> None:
    while True:
        await asyncio.sleep(COUNT_S)
        await asyncio.to_thread(_fold_and_save, hot)


def _fold_and_save(hot: HotKeys) -> None:
    hot.fold()
    try:
        hot.save()
    except OSError as error:
        log.warning("preload: the requested keys cannot be kept for the next start: %s", error)
