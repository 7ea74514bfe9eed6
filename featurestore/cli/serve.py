"""Serve features over gRPC (and REST) until SIGTERM or SIGINT; the address is printed once requests are answered."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.cli.arguments import count, port
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context, Repository
from featurestore.errors import InputError

if TYPE_CHECKING:
    from featurestore.settings import Settings

#: What a worker that has drained needs to end.
STOP_GRACE_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve`."""
    parser.add_argument("--host", help="the address to listen at (default: serving.host)")
    parser.add_argument("--port", type=port, help="the port; 0 takes a free one (default: serving.port)")
    parser.add_argument("--workers", type=count, help="processes that share the port (default: serving.workers)")
    #: One of several workers, whose numbers go into this folder.
    parser.add_argument("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument(
        "--rest-port", type=port, metavar="PORT", help="serve REST too, on rest.host and this port (default: rest.port)"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 after a stop was asked for and running requests are finished."""

    def ready(address: str) -> None:
        if context.json:
            print_json({"serving": address})
        else:
            print(f"serving on {address}")
        sys.stdout.flush()
        if args.worker:  # the supervisor reads no further, and what nobody reads would fill up
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    with context.repository() as repository:
        repository.finish_interrupted_apply()
        settings = repository.settings
        host, port = args.host or settings.serving.host, settings.serving.port if args.port is None else args.port
        rest_port = settings.rest.port if args.rest_port is None else args.rest_port
        workers = args.workers or settings.serving.workers
        if workers == 1 or args.worker:
            _serve(repository, host, port, rest_port, args.worker, ready)
            return 0
        return _supervise(context, settings, host, port, rest_port, workers, ready)


def _serve(
    repository: Repository,
    host: str,
    port: int,
    rest_port: int | None,
    metrics_folder: Path | None,
    ready: Callable[[str], None],
) -> None:
    from featurestore.cli.serve_options import serve_options
    from featurestore.freshness_webhook import watching_freshness
    from featurestore.registry.readers import record_readers
    from serving.push import PushDoor
    from serving.server import run as serve

    options = serve_options(repository.settings, host, port, rest_port, metrics_folder)
    options = replace(
        options, note_readers=partial(record_readers, repository.state), quarantined=quarantine_counter(repository)
    )
    push = PushDoor(repository.pusher, options.limits)
    with watching_freshness(repository):
        serve(repository.registry, repository.state, repository.online, repository.clock, options, ready, push)


def quarantine_counter(repository: Repository) -> Callable[[], Mapping[str, int]] | None:
    """Counts quarantined rows by view. None for DuckDB: its file lets one process in, and a scrape keeps no job out."""
    if repository.settings.offline.kind == "duckdb":
        return None
    return lambda: repository.offline.quarantine.totals()


def _supervise(
    context: Context,
    settings: Settings,
    host: str,
    port: int,
    rest_port: int | None,
    workers: int,
    ready: Callable[[str], None],
) -> int:
    """A worker's exit code where one of them cannot serve: what it says of itself on stderr."""
    from serving.metrics_folder import for_workers
    from serving.supervisor import WorkerFailed, WorkerOptions, supervise

    if rest_port == 0:
        raise InputError("several workers share one REST port, which 0 does not name; set rest.port")
    base = [sys.executable, "-m", "featurestore.cli.main", "-C", str(context.directory)]
    base += ["--now", context.now] if context.now is not None else []
    rest = [] if rest_port is None else ["--rest-port", str(rest_port)]
    metrics = None if settings.metrics.port is None else (settings.metrics.host, settings.metrics.port)
    with for_workers(settings.project, metrics) as folder:

        def command(port: int) -> list[str]:
            return [*base, "serve", "--worker", str(folder), "--host", host, "--port", str(port), *rest]

        stop_s = settings.serving.drain_s + STOP_GRACE_S
        try:
            supervise(host, port, WorkerOptions(workers=workers, command=command, stop_s=stop_s), ready)
        except WorkerFailed as failed:
            if failed.code <= 0:  # a signal
                raise
            print(f"featurestore: {failed}", file=sys.stderr)
            return failed.code
    return 0
