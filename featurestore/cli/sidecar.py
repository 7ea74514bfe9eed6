"""Run models beside the serving process, over the Open Inference Protocol, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.cli.arguments import port
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from serving.access.certificates import PemFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sidecar`."""
    parser.add_argument(
        "--models", type=Path, required=True, metavar="DIR", help="the folder of models: DIR/MODEL/VERSION/model.onnx"
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:8001",
        help="host:port (0 for a free one) or unix:///path (default: %(default)s)",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="speak TLS with this certificate (PEM chain)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM, not encrypted)")
    parser.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="only for clients with a certificate of these authorities"
    )
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help="serve Prometheus metrics on 127.0.0.1")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of log lines, on stderr")


def run(args: argparse.Namespace, context: Context) -> int:
    """0 after a stop was asked for and running requests are finished."""
    if find_spec("onnxruntime") is None and find_spec("torch") is None:
        raise ConfigError(
            'the sidecar needs something to run models with: pip install "featurestore[inference]" (ONNX Runtime), '
            "or torch"
        )
    from serving.inference.server import SidecarOptions
    from serving.inference.server import run as serve
    from serving.logs import LogOptions

    def ready(address: str) -> None:
        if context.json:
            print_json({"serving": address})
        else:
            print(f"serving on {address}")
        sys.stdout.flush()

    metrics = None if args.metrics_port is None else ("127.0.0.1", args.metrics_port)
    options = SidecarOptions(
        models=context.directory / args.models,
        address=args.address,
        tls=_tls(args, context.directory),
        metrics=metrics,
        logs=LogOptions(format=args.log_format),
    )
    serve(options, ready)
    return 0


def _tls(args: argparse.Namespace, directory: Path) -> PemFiles | None:
    """The files of TLS, paths relative to the folder that the command works in."""
    from serving.access.certificates import PemFiles

    cert, key, ca = (
        None if path is None else directory / path for path in (args.tls_cert, args.tls_key, args.tls_client_ca)
    )
    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key belong together; give both, or neither for plaintext")
    if cert is None and ca is not None:
        raise ConfigError(
            "--tls-client-ca asks clients for certificates, which only TLS carries; give --tls-cert and --tls-key too"
        )
    if cert is None:
        return None
    return PemFiles(cert=cert, key=key, ca=ca, where="--tls-*", names=("--tls-cert", "--tls-key", "--tls-client-ca"))
