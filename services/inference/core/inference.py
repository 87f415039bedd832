"""What Inference does for a caller: generate, embed, rerank, score, with whatever must be loaded loaded first."""

import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from services.inference.core.events import Delta, Ended, ScoredToken
from services.inference.core.models import LoadedModel, ModelKind, Quantization, ResolvedModel
from services.inference.core.pool import ModelPool
from services.inference.core.ports import Catalog, Embeddings, EmbedItem, WorkerRequest
from services.inference.core.prompts import Prompt
from services.inference.core.sampling import (
    MAX_TOP_LOGPROBS,
    OutputOptions,
    SamplingParameters,
    StopConditions,
)
from services.kit.errors import (
    DataLoss,
    FieldViolation,
    InvalidArgument,
    UnsupportedParameter,
    WrongModelKind,
)

MAX_EMBED_INPUTS: Final = 2048
MAX_RERANK_DOCUMENTS: Final = 1024
MAX_CACHE_SALT_CHARS: Final = 128

# A client may send the seed back to repeat an answer: JavaScript holds no larger whole number exactly.
_SEED_BITS: Final = 53


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a caller asks for.

    keep_alive_s: None leaves it to the settings, negative keeps the model, 0 unloads it.
    """

    model: str
    prompt: Prompt
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stop: StopConditions = field(default_factory=StopConditions)
    output: OutputOptions = field(default_factory=OutputOptions)
    keep_alive_s: float | None = None
    cache_salt: str = ""
    priority: int = 0

    def check(self) -> None:
        """Raise InvalidArgument for what no model could do, before anything is loaded for it."""
        self.prompt.check()
        self.sampling.check()
        self.stop.check()
        self.output.check()
        _check_cache_salt(self.cache_salt)
        if self.output.echo and self.prompt.chat is not None:
            raise UnsupportedParameter.at("output.echo", "is not for chats")


@dataclass(frozen=True, slots=True)
class GenerationStarted:
    """The first event. version and adapter are resource names; adapter is empty for the base."""

    generation_id: str
    version: str
    adapter: str
    num_prompt_tokens: int
    create_time: datetime
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """The last event."""

    ended: Ended
    load_ms: float


@dataclass(frozen=True, slots=True)
class PromptScored:
    """How likely the prompt is, where it is echoed with log probabilities. Once."""

    tokens: Sequence[ScoredToken]


GenerationEvent = GenerationStarted | PromptScored | Delta | GenerationEnded


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to turn into vectors. dimensions: None keeps all."""

    model: str
    inputs: Sequence[EmbedItem]
    dimensions: int | None = None
    truncate: bool = False
    keep_alive_s: float | None = None

    def check(self) -> None:
        """Raise InvalidArgument for what no model could do."""
        if not 1 <= len(self.inputs) <= MAX_EMBED_INPUTS:
            raise InvalidArgument.at("inputs", f"must hold 1 to {MAX_EMBED_INPUTS} texts")
        for index, item in enumerate(self.inputs):
            if not item.text.strip() and not item.token_ids:
                raise InvalidArgument.at(f"inputs[{index}]", "must not be empty")
        if self.dimensions == 0:
            raise InvalidArgument.at("dimensions", "must be at least 1")


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to score against a query. top_n: None returns all."""

    model: str
    query: str
    documents: Sequence[str]
    top_n: int | None = None
    truncate: bool = False
    keep_alive_s: float | None = None

    def check(self) -> None:
        """Raise InvalidArgument for what no model could do."""
        if not self.query.strip():
            raise InvalidArgument.at("query", "must not be empty")
        if not 1 <= len(self.documents) <= MAX_RERANK_DOCUMENTS:
            raise InvalidArgument.at("documents", f"must hold 1 to {MAX_RERANK_DOCUMENTS} texts")
        for index, document in enumerate(self.documents):
            if not document.strip():
                raise InvalidArgument.at(f"documents[{index}]", "must not be empty")
        if self.top_n == 0:
            raise InvalidArgument.at("top_n", "must be at least 1")


@dataclass(frozen=True, slots=True)
class Reranking:
    """results: (index of a document, its score), best first; of equal ones the earlier first."""

    results: Sequence[tuple[int, float]]
    num_tokens: int
    version: str


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Text or tokens to score. top_logprobs: how many likely tokens to tell beside each."""

    model: str
    prompt: Prompt
    top_logprobs: int = 0
    keep_alive_s: float | None = None
    cache_salt: str = ""
    priority: int = 0

    def check(self) -> None:
        """Raise InvalidArgument for what no model could do."""
        self.prompt.check()
        if self.prompt.text == "":
            raise InvalidArgument.at("text", "must not be empty")
        if self.top_logprobs > MAX_TOP_LOGPROBS:
            raise InvalidArgument.at("top_logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}")
        _check_cache_salt(self.cache_salt)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a text. version and adapter are resource names; adapter is empty for the base."""

    tokens: Sequence[ScoredToken]
    version: str
    adapter: str = ""

    @property
    def sum_logprob(self) -> float:
        """Of all tokens but the first, which has none."""
        return math.fsum(token.logprob for token in self.tokens if token.logprob is not None)

    @property
    def perplexity(self) -> float | None:
        """e to the minus mean log probability; None for a text of one token."""
        if len(self.tokens) < 2:
            return None
        try:
            return math.exp(-self.sum_logprob / (len(self.tokens) - 1))
        except OverflowError:
            return math.inf


class Inference:
    """Catalogue and pool together."""

    def __init__(self, catalog: Catalog, pool: ModelPool) -> None:
        self._catalog = catalog
        self._pool = pool

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Started, deltas, ended. Closing the generator early frees the slot."""
        request.check()
        model = await self._resolve(request.model, ModelKind.TEXT_GENERATION)
        seed = secrets.randbits(_SEED_BITS) if request.sampling.seed is None else request.sampling.seed
        began_s, create_time = time.monotonic(), datetime.now(UTC)
        was_loaded = self._pool.is_ready(model.version.name)
        async with self._pool.use(model, request.keep_alive_s) as entry:
            load_ms = 0.0 if was_loaded else (time.monotonic() - began_s) * 1e3
            work = WorkerRequest(
                prompt=request.prompt,
                sampling=request.sampling,
                stop=request.stop,
                output=request.output,
                seed=seed,
                adapter=model.adapter.key if model.adapter else "",
                cache_salt=request.cache_salt,
                priority=request.priority,
                scores_prompt=request.output.echo and request.output.logprobs,
            )
            async with entry.waiting() as admitted, entry.ready_worker.generate(work) as updates:
                async for update in updates:
                    if update.started is not None:
                        admitted()
                        yield GenerationStarted(
                            generation_id=f"gen-{secrets.token_hex(12)}",
                            version=model.version.name,
                            adapter=model.adapter.name if model.adapter else "",
                            num_prompt_tokens=update.started.num_prompt_tokens,
                            create_time=create_time,
                            seed=update.started.seed,
                        )
                    if update.prompt:
                        yield PromptScored(_checked(update.prompt))
                    for delta in update.deltas:
                        yield delta
                    if update.ended is not None:
                        yield GenerationEnded(update.ended, load_ms)

    async def embed(self, request: EmbedRequest) -> tuple[Embeddings, str]:
        """Vectors, and the version that made them."""
        request.check()
        model = await self._resolve(request.model, ModelKind.EMBEDDING)
        async with self._pool.use(model, request.keep_alive_s) as entry:
            embeddings = await entry.ready_worker.embed(
                request.inputs, dimensions=request.dimensions or 0, truncate=request.truncate
            )
        return embeddings, model.version.name

    async def rerank(self, request: RerankRequest) -> Reranking:
        """The best documents, by a reranking model or by an embedding model's cosines."""
        request.check()
        model = await self._resolve(request.model, ModelKind.RERANKING, ModelKind.EMBEDDING)
        async with self._pool.use(model, request.keep_alive_s) as entry:
            found = await entry.ready_worker.rerank(
                request.query, request.documents, truncate=request.truncate
            )
        best_first = sorted(enumerate(found.scores), key=lambda result: -result[1])
        return Reranking(best_first[: request.top_n], found.num_tokens, model.version.name)

    async def score(self, request: ScoreRequest) -> Score:
        """Log probabilities of a given text. Raises DataLoss where the model's answer holds what is no number."""
        request.check()
        model = await self._resolve(request.model, ModelKind.TEXT_GENERATION)
        async with self._pool.use(model, request.keep_alive_s) as entry:
            work = WorkerRequest(
                prompt=request.prompt,
                sampling=SamplingParameters(),
                stop=StopConditions(max_tokens=0),
                output=OutputOptions(logprobs=True, top_logprobs=request.top_logprobs),
                seed=0,
                adapter=model.adapter.key if model.adapter else "",
                cache_salt=request.cache_salt,
                priority=request.priority,
                scores_prompt=True,
            )
            tokens: Sequence[ScoredToken] = ()
            async with entry.waiting() as admitted, entry.ready_worker.generate(work) as updates:
                async for update in updates:
                    admitted()
                    tokens = update.prompt or tokens
        return Score(_checked(tokens), model.version.name, model.adapter.name if model.adapter else "")

    async def load(
        self, name: str, keep_alive_s: float | None, quantization: Quantization | None = None
    ) -> LoadedModel:
        """Begin to bring a model into memory. One that is there already stays in the numbers that it is in."""
        model = replace(await self._catalog.resolve(name), quantization=quantization)
        if model.kind is ModelKind.OTHER:
            raise WrongModelKind(f"{name} is no model for text: another service runs it")
        return await self._pool.load(model, keep_alive_s)

    async def find(self, name: str) -> LoadedModel:
        """A model in memory by any of its names. Raises ModelNotFound."""
        return self._pool.find(await self._version_of(name)).snapshot()

    async def unload(self, name: str, *, force: bool) -> None:
        """Take a model out of memory. Raises ModelNotFound."""
        await self._pool.unload(await self._version_of(name), force=force)

    async def _version_of(self, name: str) -> str:
        """What is in memory is known without asking: a model may have been deleted since it was loaded."""
        for loaded in self._pool.loaded_models():
            if loaded.name == name:
                return loaded.version
        return (await self._catalog.resolve(name)).version.name

    async def _resolve(self, name: str, *kinds: ModelKind) -> ResolvedModel:
        """A model of one of these kinds; what it cannot do is told by the first of them."""
        if not name:
            raise InvalidArgument.at("model", "is required")
        model = await self._catalog.resolve(name)
        if model.kind not in kinds:
            kind = kinds[0]
            able = [name for kind in kinds for name in await self._catalog.names_of_kind(kind)]
            offer = f"these can: {', '.join(able)}" if able else f"no model for {kind} is here; pull one"
            raise WrongModelKind(
                f"{name} is a model for {model.kind}, not for {kind}; {offer}", metadata={"model": name}
            )
        return model


def _check_cache_salt(salt: str) -> None:
    if len(salt) > MAX_CACHE_SALT_CHARS:
        raise InvalidArgument.at("cache_salt", f"must be at most {MAX_CACHE_SALT_CHARS} characters")


def _checked(tokens: Sequence[ScoredToken]) -> Sequence[ScoredToken]:
    """The tokens. Raises DataLoss for a log probability that is no number, as broken weights give."""
    for index, token in enumerate(tokens):
        if token.logprob is not None and math.isnan(token.logprob):
            why = (
                f"the model's answer at token {index} is no number: its weights may be broken, pull it again"
            )
            raise DataLoss(f"prompt: {why}", violations=[FieldViolation("prompt", why)])
    return tokens
