"""Signs a model: writes beside it what it was trained on, from the manifest of its training set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from featurestore.errors import InputError, ModelUnavailable, StoreError
from featurestore.feature_service import FeatureService
from featurestore.model_signature import ModelOutput, ModelSignature, misfit, sign, write_signature
from featurestore.offline.manifest import read_manifest, recorded_query
from featurestore.offline.training_set import TrainingSetQuery
from featurestore.registry.readers import record_reader
from featurestore.repository import Repository
from serving.batch_prediction import require_one_matrix
from serving.inference.model import load_model
from serving.inference.model_config import read_config

log = logging.getLogger(__name__)


def sign_model(
    repository: Repository, manifest: Path, folder: Path, outputs: Sequence[ModelOutput] = ()
) -> ModelSignature:
    """See `FeatureStore.sign_model`."""
    repository.finish_interrupted_apply()
    document = read_manifest(manifest)
    query = recorded_query(document)
    name = f"{folder.absolute().parent.name}/{folder.absolute().name}"
    service = _served(repository, query, manifest)
    told = outputs or _outputs(name, folder, query)
    signature = sign(query.service, query.views, told, document["digest"]["sha256"])
    if reason := misfit(name, signature.document(), service, repository.registry.views()):
        raise InputError(reason)
    write_signature(signature, folder)
    _note(repository, name, folder, query, signature)
    return signature


def _served(repository: Repository, query: TrainingSetQuery, manifest: Path) -> FeatureService:
    if not query.service.name:
        raise InputError(
            f"{manifest} is of features named one by one; a model binds to a feature service, so declare one, and "
            "export the training set with --service"
        )
    return repository.registry.service(query.service.name)


def _outputs(name: str, folder: Path, query: TrainingSetQuery) -> list[ModelOutput]:
    """What the model itself says; it must take the service's matrix."""
    try:
        model = load_model(folder, read_config(folder.parent))
    except ModelUnavailable as error:
        raise InputError(f"{error}; or say what it gives, with --output NAME:FP32:-1,1") from error
    require_one_matrix(name, [(spec.datatype, spec.shape) for spec in model.inputs], query.service, query.views)
    return [ModelOutput(spec.name, spec.datatype, spec.shape) for spec in model.outputs]


def _note(repository: Repository, name: str, folder: Path, query: TrainingSetQuery, signature: ModelSignature) -> None:
    """Note the model among the readers of its views. It is signed by now: a registry that is away costs a warning."""
    try:
        record_reader(
            repository.state,
            "model",
            name,
            list(query.views),
            service=signature.feature_service,
            signature=signature.signature,
            path=str(folder.absolute()),
            digest=signature.manifest_digest,
        )
    except StoreError as error:
        log.warning("model %s is signed, and not noted as a reader of its views: %s", name, error)
