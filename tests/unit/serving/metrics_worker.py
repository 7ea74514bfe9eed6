"""A worker process that leaves its numbers in a folder; a module of its own, since each process imports it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from serving.metrics import Metrics
from serving.metrics_folder import MetricsFolder
from serving.observing import Call


def publish_until_told(folder: Path, requests: int, pipe: Connection) -> None:
    """Answers `requests`, says so, lives on until told to end."""
    metrics = Metrics()
    with MetricsFolder(folder).publishing(metrics.snapshot, 0.02):
        for _ in range(requests):
            call = Call("GetOnlineFeatures", "id")
            call.service = "s"
            call.end("OK")
            metrics.record(call)
        pipe.send("recorded")
        pipe.recv()
