"""What a caller may ask for. Each rule is a comment of the contract, `Job` in trainer.proto; fields are
named as there.
"""

import math
import re
from dataclasses import replace

from services.kit.errors import FieldViolation, InvalidArgument, InvalidReference
from services.kit.names import parse_id
from services.trainer.core.model import BaseModel, Hyperparameters, JobSpec, Lora

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_MAX_TARGET_MODULES = 64
_MAX_LABELS = 16
_MAX_STEPS = 2**32 - 1


class _Rules:
    """Collects what is wrong, to tell all of it at once."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def need(self, holds: bool, field: str, description: str) -> None:
        if not holds:
            self.violations.append(FieldViolation(f"job.{field}", description))

    def enforce(self) -> None:
        if self.violations:
            message = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
            raise InvalidArgument(message, violations=self.violations)


def check_spec(spec: JobSpec) -> None:
    """Everything that can be told without asking anybody. Raises InvalidArgument with every field at
    fault.
    """
    rules = _Rules()
    rules.need(bool(spec.base_model), "base_model", "must name the model to teach")
    if spec.adapter_id:
        try:
            parse_id(spec.adapter_id, field="adapter_id")
        except InvalidReference as error:
            rules.need(False, "adapter_id", error.violations[0].description)
    _check_lora(rules, spec.lora)
    _check_hyperparameters(rules, spec.hyperparameters)
    rules.need(len(spec.labels) <= _MAX_LABELS, "labels", f"must be at most {_MAX_LABELS}")
    for key, value in spec.labels.items():
        rules.need(1 <= len(key) <= 64, "labels", "must have keys of 1 to 64 characters")
        rules.need(len(value) <= 512, f"labels[{key[:64]}]", "must be at most 512 characters")
    rules.enforce()


def _check_lora(rules: _Rules, lora: Lora) -> None:
    rules.need(1 <= lora.rank <= 256, "lora.rank", "must be 1 to 256")
    rules.need(lora.alpha > 0 and math.isfinite(lora.alpha), "lora.alpha", "must be above 0")
    rules.need(0 <= lora.dropout < 1, "lora.dropout", "must be 0 to below 1")
    modules = lora.target_modules
    rules.need(len(modules) <= _MAX_TARGET_MODULES, "lora.target_modules", "must be at most 64 names")
    for index, name in enumerate(modules[:_MAX_TARGET_MODULES]):
        rules.need(
            bool(_MODULE.fullmatch(name)), f"lora.target_modules[{index}]", "must be a name such as q_proj"
        )


def _check_hyperparameters(rules: _Rules, given: Hyperparameters) -> None:
    def need(holds: bool, field: str, description: str) -> None:
        rules.need(holds, f"hyperparameters.{field}", description)

    need(given.num_epochs > 0 and math.isfinite(given.num_epochs), "num_epochs", "must be above 0")
    need(given.max_steps is None or given.max_steps >= 1, "max_steps", "must be at least 1")
    need(1 <= given.batch_size <= 1024, "batch_size", "must be 1 to 1024")
    need(0 < given.learning_rate <= 1, "learning_rate", "must be above 0, at most 1")
    need(0 <= given.warmup_ratio <= 1, "warmup_ratio", "must be 0 to 1")
    need(given.max_sequence_tokens >= 8, "max_sequence_tokens", "must be at least 8")
    need(given.save_steps >= 1, "save_steps", "must be at least 1")


def fit_to_base(spec: JobSpec, base: BaseModel, *, sequence_was_given: bool) -> JobSpec:
    """Hold the longest example against the model's context. A default gives way; a wish that is too long
    is refused.
    """
    limit = base.context_length
    given = spec.hyperparameters
    if not limit or given.max_sequence_tokens <= limit:
        return spec
    if sequence_was_given:
        raise InvalidArgument.at(
            "job.hyperparameters.max_sequence_tokens", f"must be 8 to {limit}, the context of {base.model_id}"
        )
    return replace(spec, hyperparameters=replace(given, max_sequence_tokens=limit))


def total_steps(given: Hyperparameters, num_examples: int) -> int:
    """Optimizer steps in all."""
    if given.max_steps is not None:
        return given.max_steps
    return min(_MAX_STEPS, max(1, math.ceil(given.num_epochs * num_examples / given.batch_size)))
