"""Serve features over gRPC (and REST) until SIGTERM or SIGINT; the address is printed once requests are answered."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from featurestore.cli.arguments import port
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context

if TYPE_CHECKING:
    from featurestore.settings import Settings
    from serving.telemetry import TelemetryOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve`."""
    parser.add_argument("--host", help="the address to listen at (default: serving.host)")
    parser.add_argument("--port", type=port, help="the port; 0 takes a free one (default: serving.port)")
    parser.add_argument(
        "--rest-port", type=port, metavar="PORT", help="serve REST too, on rest.host and this port (default: rest.port)"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 after a stop was asked for and running requests are finished."""
    from serving.server import ServeOptions
    from serving.server import run as serve
    from serving.wire import Limits

    def ready(address: str) -> None:
        if context.json:
            print_json({"serving": address})
        else:
            print(f"serving on {address}")
        sys.stdout.flush()

    with context.repository() as repository:
        repository.finish_interrupted_apply()
        settings = repository.settings.serving
        rest_port = repository.settings.rest.port if args.rest_port is None else args.rest_port
        options = ServeOptions(
            host=args.host or settings.host,
            port=settings.port if args.port is None else args.port,
            limits=Limits(rows_max=settings.max_keys),
            drain_s=settings.drain_s,
            telemetry=_telemetry(repository.settings),
            rest=None if rest_port is None else (repository.settings.rest.host, rest_port),
        )
        serve(repository.registry, repository.state, repository.online, repository.clock, options, ready)
    return 0


def _telemetry(settings: Settings) -> TelemetryOptions:
    from serving.logs import LogOptions
    from serving.telemetry import TelemetryOptions, TracingOptions

    metrics, tracing, logging = settings.metrics, settings.tracing, settings.logging
    return TelemetryOptions(
        project=settings.project,
        logs=LogOptions(format=logging.format, level=logging.level, slow_s=logging.slow_request_s),
        tracing=None
        if tracing.endpoint is None
        else TracingOptions(
            endpoint=tracing.endpoint,
            ratio=tracing.ratio,
            authorization=tracing.authorization.get_secret_value() if tracing.authorization else None,
        ),
        metrics=None if metrics.port is None else (metrics.host, metrics.port),
    )
