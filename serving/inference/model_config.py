"""config.toml of a model, beside its versions: how its requests are batched, and which version answers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field as Setting
from pydantic import ValidationError

from featurestore.errors import ConfigError
from featurestore.settings_section import Positive, Section

FILE_NAME = "config.toml"


class Canary(Section):
    """A version that answers a share of the requests."""

    version: Positive
    #: By the hash of the request's id; of requests without an id, every so many.
    share: Annotated[float, Setting(gt=0, lt=1)]


class Shadow(Section):
    """A version that gets a copy of the requests; its answers are compared and counted, never returned."""

    version: Positive
    #: Relative difference from which outputs count as different.
    tolerance: Annotated[float, Setting(ge=0)] = 1e-6


class ModelConfig(Section):
    """How a model is served."""

    #: Most rows of one run of the model, so also of one request.
    max_batch_rows: Positive = 1024
    #: How long a request waits for others to join it; 0: it takes along whoever waits already.
    max_delay_ms: Annotated[float, Setting(ge=0, le=10_000)] = 0.0
    #: Whether requests may share a run. Needs inputs and outputs whose first dimension is the row.
    batching: bool = True
    #: Runs at a time.
    instances: Annotated[int, Setting(ge=1, le=64)] = 1
    #: Threads of one run, on a CPU.
    threads: Annotated[int, Setting(ge=1, le=1024)] = 1
    #: Rows that may wait; further requests are turned away.
    queue_rows: Positive = 8192
    #: A run that takes longer is given up on.
    run_timeout_s: Annotated[float, Setting(gt=0)] = 30.0
    #: Loading and warming up that takes longer is given up on.
    load_timeout_s: Annotated[float, Setting(gt=0)] = 300.0
    #: Made-up batches of so many rows run before the model is ready, besides one of max_batch_rows.
    warm_up_rows: tuple[Positive, ...] = (1,)
    #: CUDA graphs for PyTorch on a GPU: quicker for small models, more memory.
    cuda_graphs: bool = True
    #: The version that answers; by default the highest that is neither canary nor shadow.
    version: Positive | None = None
    #: Versions in memory beside canary and shadow: the one that answers, and those before it, by their number.
    keep_versions: Positive = 1
    canary: Canary | None = None
    shadow: Shadow | None = None

    def loaded_alike(self) -> ModelConfig:
        """Without what may change while versions stay as they are in memory."""
        return self.model_copy(update={"version": None, "keep_versions": 1, "canary": None, "shadow": None})


def read_config(folder: Path) -> ModelConfig:
    """What a model's folder says; ConfigError names every fault."""
    path = folder / FILE_NAME
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ModelConfig()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; mend it") from error
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        known = ", ".join(ModelConfig.model_fields)
        raise ConfigError(f"{path}: {'; '.join(faults)} (known: {known})") from error
