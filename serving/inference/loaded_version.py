"""One version of a model in memory, warm, with its queue and threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featurestore.errors import FeatureStoreError, ModelUnavailable, ServingError
from serving.inference.batcher import THREAD_PREFIX, Batcher
from serving.inference.model import Feeds, Model, load_model
from serving.inference.model_config import ModelConfig
from serving.inference.model_files import VersionFiles
from serving.inference.signature import ModelSignature, read_signature
from serving.inference.tally import Tally
from serving.inference.tensors import Tensor, TensorSpec
from serving.inference.warm_up import runs_together, warm_up
from serving.own_threads import in_own_thread


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """What answers requests to a version."""

    name: str
    number: int
    #: What it was loaded from; another one means that it must be loaded anew.
    stamp: object
    model: Model
    signature: ModelSignature | None
    together: bool
    batcher: Batcher
    tally: Tally
    inputs: dict[str, TensorSpec]

    @property
    def label(self) -> str:
        """The version as the protocol has it."""
        return str(self.number)

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not self.batcher.stuck

    async def infer(self, feeds: Feeds, rows: int) -> dict[str, Tensor]:
        """The outputs by name."""
        outputs = await self.batcher.infer(feeds, rows)
        return {spec.name: tensor for spec, tensor in zip(self.model.outputs, outputs, strict=True)}

    def require_signature(self, wanted: str) -> None:
        """ServingError unless the model was trained on features of this signature."""
        if self.signature is None or self.signature.signature != wanted:
            mine = "no signature" if self.signature is None else f"signature {self.signature.signature}"
            raise ServingError(
                f"version {self.number} of model {self.name!r} has {mine}, the features have {wanted}; "
                "train it on this service, or serve the service it was trained on"
            )


async def load_version(
    name: str, files: VersionFiles, config: ModelConfig, tally: Tally, changed: Callable[[], None]
) -> LoadedVersion:
    """Load and warm up, in a thread; ModelUnavailable says what is wrong with it."""

    def work() -> tuple[Model, ModelSignature | None]:
        model = load_model(files.folder, config)
        signature = read_signature(files.folder)
        warm_up(model, config)
        return model, signature

    try:
        model, signature = await in_own_thread(work, f"{THREAD_PREFIX}load", config.load_timeout_s)
    except TimeoutError as error:
        raise ModelUnavailable(
            f"it is not loaded and warm after {config.load_timeout_s:g} s; raise load_timeout_s, or mend the model"
        ) from error
    except FeatureStoreError:
        raise
    except MemoryError as error:
        raise ModelUnavailable("there is no memory for it; stop something else, or export a smaller model") from error
    except Exception as error:  # a model is foreign code: its fault keeps no other from being served
        raise ModelUnavailable(f"it raised {type(error).__name__}: {error}; mend its files") from error
    together = runs_together(model, config)
    batcher = Batcher(
        f"version {files.number} of model {name!r}",
        model.run,
        config,
        tally,
        together=together,
        changed=changed,
    )
    return LoadedVersion(
        name=name,
        number=files.number,
        stamp=(files.stamp, config.loaded_alike()),
        model=model,
        signature=signature,
        together=together,
        batcher=batcher,
        tally=tally,
        inputs={spec.name: spec for spec in model.inputs},
    )
