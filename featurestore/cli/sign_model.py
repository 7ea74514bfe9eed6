"""Write signature.json beside a model, so that it is never fed features that it was not trained on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from featurestore import FeatureStore
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.model_signature import FILE_NAME, ModelOutput

#: NAME:TYPE:SHAPE, a size of -1 varying.
_OUTPUT = re.compile(r"([^:]+):([^:]+):((?:-1|[0-9]{1,18})(?:,(?:-1|[0-9]{1,18}))*)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sign-model`."""
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="the manifest of the training set")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="the folder of the version: MODELS/MODEL/VERSION"
    )
    parser.add_argument(
        "--output",
        type=_output,
        action="append",
        default=[],
        metavar="NAME:TYPE:SHAPE",
        help="an output, as in late:FP32:-1,1 (-1: any size); all of them, for a model that cannot be loaded here",
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when the signature is written."""
    with context.repository() as repository:
        signature = FeatureStore.of(repository).sign_model(args.manifest, args.model, outputs=args.output)
    path = args.model / FILE_NAME
    if context.json:
        print_json({"path": str(path)} | signature.document())
    else:
        outputs = ", ".join(f"{output.name} {output.datatype} {list(output.shape)}" for output in signature.outputs)
        print(
            f"wrote {path}: feature service {signature.feature_service}, {len(signature.fields)} fields, "
            f"signature {signature.signature[:12]}\noutputs: {outputs}"
        )
    return 0


def _output(text: str) -> ModelOutput:
    from serving.inference.tensors import DTYPES

    if not (parts := _OUTPUT.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:TYPE:SHAPE, as in late:FP32:-1,1")
    name, datatype, shape = parts.groups()
    if datatype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: {datatype} is no type of the protocol; choose {', '.join(DTYPES)}")
    return ModelOutput(name, datatype, tuple(map(int, shape.split(","))))
