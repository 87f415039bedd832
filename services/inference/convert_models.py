"""Messages <-> domain of what is in memory, and of what the machine computes with."""

from typing import Final

from lares.inference.v1 import inference_pb2 as pb
from services.inference.adapters.hardware import Hardware
from services.inference.convert import timestamp_to_proto
from services.inference.core.models import LoadedModel, LoadState, Quantization
from services.kit.errors import FieldViolation, InvalidArgument, InvalidReference
from services.kit.names import ServedName

_STATES: Final = {
    LoadState.LOADING: pb.LOADED_MODEL_STATE_LOADING,
    LoadState.READY: pb.LOADED_MODEL_STATE_READY,
    LoadState.UNLOADING: pb.LOADED_MODEL_STATE_UNLOADING,
    LoadState.UNLOADED: pb.LOADED_MODEL_STATE_UNLOADED,
    LoadState.FAILED: pb.LOADED_MODEL_STATE_FAILED,
}
_COLLECTION: Final = "loadedModels/"


def quantization_from_proto(name: str) -> Quantization | None:
    """None for an empty name. Raises InvalidArgument for one that is not known."""
    if not name:
        return None
    try:
        return Quantization(name)
    except ValueError:
        known = ", ".join(Quantization)
        raise InvalidArgument.at("quantization", f"must be one of {known}") from None


def served_name_from_proto(name: str) -> str:
    """`loadedModels/{model}` or `loadedModels/{model}:{version}` -> the served name.

    Raises InvalidReference.
    """
    if not name.startswith(_COLLECTION):
        why = "must be loadedModels/{model}"
        raise InvalidReference(f"'{name[:80]}' {why}", violations=[FieldViolation("name", why)])
    return str(ServedName.parse(name.removeprefix(_COLLECTION), field="name"))


def loaded_model_to_proto(model: LoadedModel) -> pb.LoadedModel:
    """As it stood."""
    facts = model.facts
    return pb.LoadedModel(
        name=f"{_COLLECTION}{model.name}",
        version=model.version,
        state=_STATES[model.state],
        device=facts.device if facts else "",
        dtype=facts.dtype if facts else "",
        memory_bytes=model.memory_bytes,
        adapters=model.adapters,
        num_active_requests=model.num_active_requests,
        num_waiting_requests=model.num_waiting_requests,
        context_length=facts.context_length if facts else 0,
        load_time=timestamp_to_proto(model.load_time),
        last_use_time=timestamp_to_proto(model.last_use_time),
        expire_time=timestamp_to_proto(model.expire_time) if model.expire_time else None,
        load_progress=model.load_progress,
        failure_message=model.failure_message,
        worker_pid=model.worker_pid,
        note=model.note,
        num_ready_workers=model.num_ready_workers,
        num_worker_restarts=model.num_restarts,
    )


def hardware_to_proto(hardware: Hardware) -> pb.GetHardwareResponse:
    """All of it."""
    return pb.GetHardwareResponse(
        cpu_model=hardware.cpu_model,
        num_cpus=hardware.num_cpus,
        cpu_features=hardware.cpu_features,
        memory_total_bytes=hardware.memory.total_bytes,
        memory_available_bytes=hardware.memory.available_bytes,
        gpus=[
            pb.Gpu(
                index=gpu.index,
                model=gpu.model,
                memory_total_bytes=gpu.memory.total_bytes,
                memory_available_bytes=gpu.memory.available_bytes,
                driver_version=gpu.driver_version,
            )
            for gpu in hardware.gpus
        ],
    )
