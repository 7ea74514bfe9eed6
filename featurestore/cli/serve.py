"""Serve features over gRPC until SIGTERM or SIGINT; the address is printed once requests are answered."""

from __future__ import annotations

import argparse
import sys

from featurestore.cli.arguments import port
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve`."""
    parser.add_argument("--host", help="the address to listen at (default: serving.host)")
    parser.add_argument("--port", type=port, help="the port; 0 takes a free one (default: serving.port)")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 after a stop was asked for and running requests are finished."""
    from serving.push import PushDoor
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
        options = ServeOptions(
            host=args.host or settings.host,
            port=settings.port if args.port is None else args.port,
            limits=Limits(rows_max=settings.max_keys),
            drain_s=settings.drain_s,
        )
        push = PushDoor(repository.pusher, options.limits)
        serve(repository.registry, repository.state, repository.online, repository.clock, options, ready, push)
    return 0
