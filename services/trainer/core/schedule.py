"""How fast to learn at each step."""

import math

from services.trainer.core.model import Hyperparameters


def learning_rate(step: int, total_steps: int, given: Hyperparameters) -> float:
    """The rate of a step, counted from 0: a linear rise over the warm-up, then linearly down towards 0
    after the last step.
    """
    num_warmup = math.ceil(given.warmup_ratio * total_steps)
    if step < num_warmup:
        return given.learning_rate * (step + 1) / num_warmup
    return given.learning_rate * (total_steps - step) / (total_steps - num_warmup)
