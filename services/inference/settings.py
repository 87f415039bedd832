"""What Inference can be told."""

from typing import ClassVar, Literal

from pydantic import Field

from services.kit.settings import ServiceSettings, Texts


class InferenceSettings(ServiceSettings):
    """Environment `LARES_INFERENCE_*`, table `[inference]`."""

    section: ClassVar[str] = "inference"

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where models compute: auto takes a CUDA card if the model fits it."
    )
    quantization: Literal["auto", "bf16", "fp16", "fp32", "int8", "int4"] = Field(
        default="auto",
        description="Numbers for weights: auto takes the floats that the device computes with if the model fits"
        " its memory so, else int8, else int4.",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="Record the steps of a model on a CUDA card and replay them; off, they are launched one by one.",
    )
    max_models: int = Field(
        default=3,
        ge=1,
        le=64,
        description="The most models in memory; the least recently used idle one makes room.",
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="The most memory that all models may take of a device, in bytes; 0 is 85% of what is usable.",
    )
    kv_cache_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory for a model's keys and values, in bytes; 0 takes what its context and"
        " max_sequences ask for, at most a quarter of the memory.",
    )
    max_batch_tokens: int = Field(
        default=576,
        ge=16,
        le=65_536,
        description="Tokens that one step of a model computes at most, prompts and answers together.",
    )
    max_sequences: int = Field(
        default=64, ge=1, le=256, description="Answers that one model works on at once; the others wait."
    )
    workers_per_model: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Processes that answer for one model, each with its own memory; fewer where that is short.",
    )
    preload: Texts = Field(
        default=(), description="Names of models to load when the service starts, with commas between them."
    )
    pinned: Texts = Field(
        default=(),
        description="Names of models that, once loaded, neither expire nor make room, with commas between them.",
    )
    max_waiting: int = Field(
        default=256,
        ge=0,
        le=100_000,
        description="Requests that may wait for one model; more are turned away.",
    )
    max_adapters: int = Field(
        default=8, ge=1, le=256, description="LoRA adapters in memory beside one base model."
    )
    keep_alive_s: float = Field(
        default=300.0,
        description="Seconds that an unused model stays in memory: 0 not at all, negative for ever.",
    )
    load_timeout_s: float = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="Seconds after which a model that is still loading is given up.",
    )
    step_timeout_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="Seconds that one step of a model may take before its process is replaced; 0 for any.",
    )
