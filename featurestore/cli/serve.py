"""Serve features over gRPC until SIGTERM or SIGINT; the address is printed once requests are answered."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from featurestore.cli.arguments import count, port
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context, Repository

#: What a worker that has drained needs to end.
STOP_GRACE_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve`."""
    parser.add_argument("--host", help="the address to listen at (default: serving.host)")
    parser.add_argument("--port", type=port, help="the port; 0 takes a free one (default: serving.port)")
    parser.add_argument("--workers", type=count, help="processes that share the port (default: serving.workers)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, context: Context) -> int:
    """0 after a stop was asked for and running requests are finished."""

    def ready(address: str) -> None:
        if context.json:
            print_json({"serving": address})
        else:
            print(f"serving on {address}")
        sys.stdout.flush()

    with context.repository() as repository:
        repository.finish_interrupted_apply()
        settings = repository.settings.serving
        host, port = args.host or settings.host, settings.port if args.port is None else args.port
        workers = args.workers or settings.workers
        if workers == 1 or args.worker:
            _serve(repository, host, port, args.worker, ready)
            return 0
        return _supervise(context, host, port, workers, settings.drain_s, ready)


def _serve(repository: Repository, host: str, port: int, worker: bool, ready: Callable[[str], None]) -> None:
    from serving.server import ServeOptions
    from serving.server import run as serve
    from serving.wire import Limits

    settings = repository.settings.serving
    options = ServeOptions(
        host=host,
        port=port,
        worker=worker,
        limits=Limits(
            rows_max=settings.max_keys,
            features_max=settings.max_features,
            message_bytes_max=settings.max_message_bytes,
        ),
        in_flight_max=settings.in_flight_max,
        queue_max=settings.queue_max,
        store_timeout_s=settings.store_timeout_s,
        drain_s=settings.drain_s,
    )
    serve(repository.registry, repository.state, repository.online, repository.clock, options, ready)


def _supervise(
    context: Context, host: str, port: int, workers: int, drain_s: float, ready: Callable[[str], None]
) -> int:
    """A worker's exit code where one of them cannot serve: what it says of itself on stderr."""
    from serving.supervisor import WorkerFailed, WorkerOptions, supervise

    base = [sys.executable, "-m", "featurestore.cli.main", "-C", str(context.directory)]
    base += ["--now", context.now] if context.now is not None else []

    def command(port: int) -> list[str]:
        return [*base, "serve", "--worker", "--host", host, "--port", str(port)]

    try:
        supervise(host, port, WorkerOptions(workers=workers, command=command, stop_s=drain_s + STOP_GRACE_S), ready)
    except WorkerFailed as failed:
        if failed.code <= 0:  # a signal
            raise
        print(f"featurestore: {failed}", file=sys.stderr)
        return failed.code
    return 0
