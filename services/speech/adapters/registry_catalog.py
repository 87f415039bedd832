"""Models by name, from the Registry."""

from typing import Final

import grpc

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.channels import translate_errors
from services.kit.errors import ModelNotAvailable, WrongModelKind
from services.speech.core.domain import Ability, Engine, SpeechModel

_ENGINES: Final = {pb.FORMAT_VOSK: Engine.VOSK, pb.FORMAT_CTRANSLATE2: Engine.WHISPER}
_ABILITIES: Final = {
    pb.CAPABILITY_TRANSCRIPTION: Ability.TRANSCRIPTION,
    pb.CAPABILITY_STREAMING_RECOGNITION: Ability.STREAMING,
    pb.CAPABILITY_SPEECH_TRANSLATION: Ability.TRANSLATION,
}


class RegistryCatalog:
    """A ModelCatalog over the Registry's stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rpc.RegistryServiceStub(channel)

    async def resolve(self, name: str) -> SpeechModel:
        """Raises InvalidReference, ModelNotFound, VersionNotFound, ModelNotAvailable, WrongModelKind, Unavailable."""
        with translate_errors():
            resolved = await self._stub.ResolveModel(pb.ResolveModelRequest(reference=name))
        return speech_model_from_proto(resolved)


def speech_model_from_proto(resolved: pb.ResolveModelResponse) -> SpeechModel:
    """What Speech needs to know of it. Raises ModelNotAvailable, WrongModelKind."""
    model, version = resolved.model, resolved.version
    model_id = model.name.removeprefix("models/")
    if model.kind != pb.MODEL_KIND_SPEECH_TO_TEXT:
        raise WrongModelKind(
            f"'{model_id}' does not turn speech into text; `lares list` shows models that do, such as whisper-base"
        )
    if version.state != pb.VERSION_STATE_AVAILABLE:
        why = f": {version.state_reason}" if version.state_reason else ""
        raise ModelNotAvailable(f"'{model_id}' is not available{why}; `lares pull` it again")
    return SpeechModel(
        model_id=model_id,
        version=version.name,
        file_format=pb.Format.Name(version.format).removeprefix("FORMAT_"),
        engine=_ENGINES.get(version.format),
        abilities=frozenset(
            _ABILITIES[capability] for capability in model.capabilities if capability in _ABILITIES
        ),
        # `vi-VN` is `vi` to a recogniser.
        languages=tuple(dict.fromkeys(tag.partition("-")[0].lower() for tag in model.languages)),
    )
