"""A folder in which the workers of one server leave their numbers, so that any of them answers a scrape for all.

Each worker writes a file now and then; whoever is scraped adds up the files (docs/metrics.md says why it is so).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from featurestore.trouble import Trouble
from serving.exposition import Collect, merged, metrics_port
from serving.metrics import Distribution, Snapshot

log = logging.getLogger(__name__)

#: How often a worker writes its numbers: what a scrape shows is at most this old.
PUBLISH_S = 1.0
_RETIRED = "retired.json"


class MetricsFolder:
    """The folder, empty when the first worker starts.

    A worker holds a lock on a file for as long as it lives, so a killed one is known without asking for its pid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def publishing(self, collect: Collect, publish_s: float = PUBLISH_S) -> Iterator[None]:
        """Write `collect()` for this process every `publish_s` meanwhile, from a thread, and once more at the end."""
        numbers = self._path / f"{os.getpid()}-{os.urandom(4).hex()}.json"
        lock = _locked(numbers.with_suffix(".new"))
        os.rename(numbers.with_suffix(".new"), numbers.with_suffix(".lock"))  # seen only once it is held
        stopped = threading.Event()

        def publish() -> None:
            trouble = Trouble(
                log,
                f"the numbers of this worker cannot be written to {numbers}",
                "the numbers of this worker are written again",
            )
            while True:
                try:
                    _write(numbers, collect())
                    trouble.passed()
                except OSError as error:
                    trouble.met(error)
                if stopped.wait(publish_s):
                    return

        thread = threading.Thread(target=publish, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            with contextlib.suppress(OSError):
                _write(numbers, collect())
            os.close(lock)

    def collect(self) -> Snapshot:
        """The numbers of all workers that ever were."""
        folding = _locked(self._path / "folding")  # one at a time: they move files
        try:
            live: list[Path] = []
            gone: list[Path] = []
            for lock in sorted(self._path.glob("*.lock")):
                (live if _is_held(lock) else gone).append(lock)
            retired = self._retire(gone)
            return merged([_read(lock.with_suffix(".json")) for lock in live], [retired])
        finally:
            os.close(folding)

    def _retire(self, gone: list[Path]) -> Snapshot:
        """Add the workers that are gone to the file of their like, so that restarts do not pile up files."""
        retired = _read(self._path / _RETIRED)
        if gone:
            retired = merged([], [retired, *(_read(lock.with_suffix(".json")) for lock in gone)])
            for lock in gone:  # the lock last: a crash between may lose a dead worker's counts, never add them twice
                for suffix in (".json", ".draft"):  # a draft of one that was killed while it wrote
                    lock.with_suffix(suffix).unlink(missing_ok=True)
            _write(self._path / _RETIRED, retired)
            for lock in gone:
                lock.unlink()
        return retired


@contextmanager
def for_workers(project: str, metrics: tuple[str, int] | None) -> Iterator[Path]:
    """A folder for the workers that are started meanwhile; answers scrapes for all at `metrics`, if that is set."""
    with tempfile.TemporaryDirectory(prefix="featurestore-metrics-") as name:
        folder = Path(name)
        if metrics is None:
            yield folder
            return
        with metrics_port(project, MetricsFolder(folder).collect, *metrics):
            yield folder


def _locked(path: Path) -> int:
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _is_held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _write(path: Path, snapshot: Snapshot) -> None:
    """Whole or not at all."""
    document = {
        name: [
            [list(labels), asdict(value) if isinstance(value, Distribution) else value]
            for labels, value in values.items()
        ]
        for name, values in snapshot.values.items()
    }
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document), encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> Snapshot:
    with contextlib.suppress(FileNotFoundError):  # a worker that has not written yet
        document = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(
            {
                name: {
                    tuple(labels): Distribution(**value) if isinstance(value, dict) else value
                    for labels, value in values
                }
                for name, values in document.items()
            }
        )
    return Snapshot()
