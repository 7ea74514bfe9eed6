"""Write signature.json beside a model, so that it is never fed features that it was not trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore import FeatureStore
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context
from featurestore.model_signature import FILE_NAME, ModelOutput


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
    name, datatype, shape = (*text.split(":"), "", "")[:3]
    sizes = shape.split(",")
    if not name or not datatype or text.count(":") != 2 or not all(size.lstrip("-").isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:TYPE:SHAPE, as in late:FP32:-1,1")
    return ModelOutput(name, datatype, tuple(map(int, sizes)))
