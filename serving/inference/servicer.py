"""The methods of inference.GRPCInferenceService: which model, which version, what came of it. No rules of batching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from featurestore import __version__
from featurestore.errors import FeatureStoreError, InputError, NotFoundError
from serving.inference import signature
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.loaded_version import LoadedVersion
from serving.inference.messages import parsed, read_inputs, reply_message, require_outputs
from serving.inference.repository import ModelRepository
from serving.inference.served_model import ServedModel
from serving.inference.shared_memory import Regions
from serving.inference.tensors import TensorSpec
from serving.status_codes import Context, guarded, status_code

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
EXTENSIONS = ("model_repository", "system_shared_memory")
Method = Callable[[bytes, Context], Awaitable[bytes]]


class GrpcInferenceService:
    """What the protocol asks of a server. `ready` is set once it takes requests, and cleared when it drains."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository
        self._regions = Regions()
        self.ready = False

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods by name, for a server; messages pass as bytes."""
        methods: dict[str, Method] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
            "SystemSharedMemoryStatus": self.shared_memory_status,
            "SystemSharedMemoryRegister": self.register_shared_memory,
            "SystemSharedMemoryUnregister": self.unregister_shared_memory,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(guarded(method, f"{SERVICE}/{name}"))
                for name, method in methods.items()
            },
        )

    def close(self) -> None:
        """Forget all shared memory."""
        self._regions.unregister()

    # ------------------------------------------------------------------ inference

    async def model_infer(self, message: bytes, context: Context) -> bytes:
        """ModelInfer."""
        asked = parsed(pb.ModelInferRequest, message)
        version = self._repository.model(asked.model_name).choose(asked.model_version, asked.id)
        remaining_s = context.time_remaining()
        try:
            if remaining_s is None:
                reply = await self._answer(asked, version)
            else:
                async with asyncio.timeout(remaining_s):
                    reply = await self._answer(asked, version)
        except (FeatureStoreError, TimeoutError) as error:
            version.tally.codes[status_code(error).name] += 1
            raise
        version.tally.codes["OK"] += 1
        return reply

    async def _answer(self, asked: pb.ModelInferRequest, version: LoadedVersion) -> bytes:
        if signature.PARAMETER in asked.parameters:
            version.require_signature(asked.parameters[signature.PARAMETER].string_param)
        require_outputs(asked, version, self._regions)
        feeds, rows = read_inputs(asked, version, self._regions)
        outputs = await version.infer(feeds, rows)
        model = self._repository.models.get(version.name)
        if model is not None:
            model.shadow(version, feeds, rows, outputs)
        return reply_message(asked, version, outputs, self._regions)

    # ------------------------------------------------------------------ what there is

    async def server_live(self, message: bytes, context: Context) -> bytes:
        """ServerLive."""
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, message: bytes, context: Context) -> bytes:
        """ServerReady."""
        return pb.ServerReadyResponse(ready=self.ready).SerializeToString()

    async def server_metadata(self, message: bytes, context: Context) -> bytes:
        """ServerMetadata."""
        reply = pb.ServerMetadataResponse(name="featurestore-sidecar", version=__version__, extensions=EXTENSIONS)
        return reply.SerializeToString()

    async def model_ready(self, message: bytes, context: Context) -> bytes:
        """ModelReady: false for a version that cannot be served, NOT_FOUND for one that is not known."""
        asked = parsed(pb.ModelReadyRequest, message)
        model = self._repository.model(asked.name)
        try:
            ready = model.choose(asked.version, "").ready if asked.version else model.ready
        except NotFoundError:
            raise
        except FeatureStoreError:
            ready = False
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def model_metadata(self, message: bytes, context: Context) -> bytes:
        """ModelMetadata."""
        asked = parsed(pb.ModelMetadataRequest, message)
        model = self._repository.model(asked.name)
        version = model.choose(asked.version, "") if asked.version or model.active is None else model.active
        reply = pb.ModelMetadataResponse(
            name=version.name,
            versions=[str(number) for number in sorted(model.versions)],
            platform=version.model.platform,
            inputs=map(_metadata, version.model.inputs),
            outputs=map(_metadata, version.model.outputs),
        )
        reply.parameters["version"].string_param = version.label
        if version.signature is not None:
            reply.parameters[signature.PARAMETER].string_param = version.signature.text
        return reply.SerializeToString()

    # ------------------------------------------------------------------ the model repository

    async def repository_index(self, message: bytes, context: Context) -> bytes:
        """RepositoryIndex."""
        asked = parsed(pb.RepositoryIndexRequest, message)
        reply = pb.RepositoryIndexResponse()
        for _, model in sorted(self._repository.models.items()):
            for version, state, reason in _states(model):
                if state == "READY" or not asked.ready:
                    reply.models.add(name=model.name, version=version, state=state, reason=reason)
        return reply.SerializeToString()

    async def load(self, message: bytes, context: Context) -> bytes:
        """RepositoryModelLoad."""
        asked = parsed(pb.RepositoryModelLoadRequest, message)
        if asked.parameters:
            raise InputError(
                f"a model is what lies in its folder; leave out {', '.join(map(repr, sorted(asked.parameters)))}"
            )
        await self._repository.load(asked.model_name)
        return pb.RepositoryModelLoadResponse().SerializeToString()

    async def unload(self, message: bytes, context: Context) -> bytes:
        """RepositoryModelUnload."""
        await self._repository.unload(parsed(pb.RepositoryModelUnloadRequest, message).model_name)
        return pb.RepositoryModelUnloadResponse().SerializeToString()

    # ------------------------------------------------------------------ shared memory

    async def shared_memory_status(self, message: bytes, context: Context) -> bytes:
        """SystemSharedMemoryStatus."""
        asked = parsed(pb.SystemSharedMemoryStatusRequest, message)
        reply = pb.SystemSharedMemoryStatusResponse()
        for region in [self._regions.get(asked.name)] if asked.name else self._regions.all():
            told = reply.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.size
        return reply.SerializeToString()

    async def register_shared_memory(self, message: bytes, context: Context) -> bytes:
        """SystemSharedMemoryRegister."""
        asked = parsed(pb.SystemSharedMemoryRegisterRequest, message)
        self._regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return pb.SystemSharedMemoryRegisterResponse().SerializeToString()

    async def unregister_shared_memory(self, message: bytes, context: Context) -> bytes:
        """SystemSharedMemoryUnregister."""
        self._regions.unregister(parsed(pb.SystemSharedMemoryUnregisterRequest, message).name)
        return pb.SystemSharedMemoryUnregisterResponse().SerializeToString()


def _metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _states(model: ServedModel) -> list[tuple[str, str, str]]:
    """(version, state, reason) of every version, by number; of the model where it has none."""
    states = {
        number: ("READY", "") if version.ready else ("UNAVAILABLE", "it hangs")
        for number, version in model.versions.items()
    }
    for number, failure in model.failures.items():
        states.setdefault(number, ("UNAVAILABLE", failure.reason))
    if not states:
        return [("", "LOADING" if model.loading else "UNAVAILABLE", "" if model.loading else model.reason())]
    return [(str(number), *states[number]) for number in sorted(states)]
