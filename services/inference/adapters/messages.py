"""What crosses between the service and its workers."""

import msgspec

from services.inference.core.events import LoopStats, Update
from services.inference.core.prompts import Prompt
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions


class LoadProgress(msgspec.Struct, frozen=True):
    """Share of loading done, 0 to 1."""

    share: float


class Loaded(msgspec.Struct, frozen=True):
    """What was loaded. context_length in tokens.

    num_kv_tokens: whose keys and values fit in memory at once; weights_bytes, kv_bytes: taken by weights and by
    keys and values; card_bytes: of a graphics card, taken by all of it; note: what the operator should know, or
    empty. An embedding model tells none of these.
    """

    device: str
    dtype: str
    context_length: int
    num_kv_tokens: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    card_bytes: int = 0
    note: str = ""


class EngineInit(msgspec.Struct, frozen=True):
    """folder: safetensors, config and tokenizer. device: `cpu`, `cuda:0`.

    max_sequences: that run at once. max_batch_tokens: computed in one step. kv_bytes: for keys and values; 0
    leaves it to the engine. cuda_graphs: record decode steps on a CUDA card. weight_type: `bf16`, `fp16`, `fp32`,
    `int8`, `int4`; empty for the floats that the device computes with.
    """

    folder: str
    device: str
    max_sequences: int
    max_batch_tokens: int = 576
    kv_bytes: int = 0
    cuda_graphs: bool = True
    weight_type: str = ""


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Begins a generation. adapter: one that was loaded, or empty for the base. scores_prompt: tell how likely
    the prompt is; with stop.max_tokens 0 that is all.
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


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Brings a LoRA adapter into memory; the call finishes when it is there."""

    name: str
    folder: str


class DropAdapter(msgspec.Struct, frozen=True, tag="drop_adapter"):
    """Takes an adapter out of memory; the call finishes when it is gone."""

    name: str


class WatchStats(msgspec.Struct, frozen=True, tag="watch_stats"):
    """Asks for Stats whenever they changed, at most once a second. The call does not end."""


EngineRequest = Generate | LoadAdapter | DropAdapter | WatchStats


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What one step said about one generation."""

    update: Update


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """How the step loop stands."""

    stats: LoopStats


EngineEvent = Step | Stats


class EmbedderInit(msgspec.Struct, frozen=True):
    """folder: safetensors, config and tokenizer. device: `auto`, `cpu` or `cuda`. reranks: a cross-encoder."""

    folder: str
    device: str
    reranks: bool = False


class EmbedInput(msgspec.Struct, frozen=True):
    """Text, or tokens of the model's vocabulary."""

    text: str = ""
    token_ids: tuple[int, ...] = ()


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Texts to turn into vectors. dimensions: keep so many leading ones; 0 keeps all."""

    inputs: tuple[EmbedInput, ...]
    dimensions: int = 0
    truncate: bool = False


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The vectors, in order: float32 in native byte order, `dimensions` a vector."""

    vectors: bytes
    dimensions: int
    num_tokens: int


class Rerank(msgspec.Struct, frozen=True, tag="rerank"):
    """Documents to score against a query. truncate: cut what is too long."""

    query: str
    documents: tuple[str, ...]
    truncate: bool = False


class Reranked(msgspec.Struct, frozen=True, tag="reranked"):
    """A score for each document, in order; more is better."""

    scores: tuple[float, ...]
    num_tokens: int


class ConvertInit(msgspec.Struct, frozen=True):
    """source: folder with one GGUF file. target: empty folder for what is made of it."""

    source: str
    target: str


class Converted(msgspec.Struct, frozen=True):
    """producer: what made it, for the record. paths: of the files made, in the target folder."""

    producer: str
    paths: tuple[str, ...]


class QuantizeInit(msgspec.Struct, frozen=True):
    """source: folder of safetensors. target: empty folder for them in fewer bits. scheme: `int8`, `int4`, `nf4`.

    device: `cpu`, `cuda:0`, where it is done and measured.
    """

    source: str
    target: str
    scheme: str
    device: str


class Quantized(msgspec.Struct, frozen=True):
    """producer: what made it, for the record. paths: of the files made, in the target folder.

    perplexity, baseline: on the text of `text_digest`, of what was made and of what it was made from; baseline is 0
    where memory is too short to have that too.
    """

    producer: str
    paths: tuple[str, ...]
    perplexity: float
    baseline: float
    text_digest: str
    num_tokens: int
