"""What the core needs from outside."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.inference.core.events import Update
from services.inference.core.models import ModelKind, ModelVersion, ResolvedModel, WorkerFacts
from services.inference.core.prompts import Prompt
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """One generation as a worker takes it. adapter: key of one that was loaded, or empty.

    scores_prompt: tell how likely the prompt is; with stop.max_tokens 0 that is all.
    """

    prompt: Prompt
    sampling: SamplingParameters
    stop: StopConditions
    output: OutputOptions
    seed: int
    adapter: str = ""
    cache_salt: str = ""
    priority: int = 0
    scores_prompt: bool = False


@dataclass(frozen=True, slots=True)
class EmbedItem:
    """Text, or tokens of the model's vocabulary."""

    text: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, in order, each of length 1."""

    vectors: Sequence[Sequence[float]]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Relevances:
    """A score for each document, in order; more is better."""

    scores: Sequence[float]
    num_tokens: int


class Catalog(Protocol):
    """Where models are recorded."""

    async def resolve(self, name: str) -> ResolvedModel:
        """What a served name means. Raises ModelNotFound, VersionNotFound, ModelNotAvailable."""
        ...

    async def names_of_kind(self, kind: ModelKind) -> list[str]:
        """Some models that do this kind of work, for a message."""
        ...


class ModelWorker(Protocol):
    """A process with one model in it. Every method raises WorkerLost when it is gone."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def facts(self) -> WorkerFacts:
        """What it loaded."""
        ...

    def memory_bytes(self) -> int:
        """Its resident set now; 0 if it is gone."""
        ...

    def generate(self, request: WorkerRequest) -> AbstractAsyncContextManager[AsyncIterator[Update]]:
        """Updates until the end. Leaving the block before it frees the slot."""
        ...

    async def embed(self, inputs: Sequence[EmbedItem], *, dimensions: int, truncate: bool) -> Embeddings:
        """Vectors."""
        ...

    async def rerank(self, query: str, documents: Sequence[str], *, truncate: bool) -> Relevances:
        """How well documents fit a query."""
        ...

    async def load_adapter(self, adapter: ModelVersion) -> None:
        """Bring a LoRA adapter into memory, under its key."""
        ...

    async def drop_adapter(self, key: str) -> None:
        """Take one out of memory."""
        ...

    async def wait_dead(self) -> str:
        """Wait for its end, whatever the cause, and tell it."""
        ...

    async def stop(self) -> None:
        """End it; returns when its memory is back."""
        ...


class WorkerFactory(Protocol):
    """Makes workers."""

    def estimate_bytes(self, model: ResolvedModel) -> int:
        """About how much memory the model will take."""
        ...

    async def start(self, model: ResolvedModel, on_progress: Callable[[float], None]) -> ModelWorker:
        """Load a model. on_progress is told the share that is done. Cancelled, it leaves nothing behind."""
        ...
