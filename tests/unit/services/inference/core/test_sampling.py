import math

import pytest

from services.inference.core.sampling import (
    OutputOptions,
    SamplingDefaults,
    SamplingParameters,
    StopConditions,
    resolve_sampling,
)
from services.kit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (SamplingParameters(temperature=2.1), "sampling.temperature"),
        (SamplingParameters(temperature=math.nan), "sampling.temperature"),
        (SamplingParameters(top_p=0.0), "sampling.top_p"),
        (SamplingParameters(min_p=1.5), "sampling.min_p"),
        (SamplingParameters(presence_penalty=-2.5), "sampling.presence_penalty"),
        (SamplingParameters(frequency_penalty=3.0), "sampling.frequency_penalty"),
        (SamplingParameters(repetition_penalty=0.0), "sampling.repetition_penalty"),
        (SamplingParameters(logit_bias={7: 101.0}), "sampling.logit_bias[7]"),
        (SamplingParameters(logit_bias=dict.fromkeys(range(1025), 0.0)), "sampling.logit_bias"),
        (StopConditions(max_tokens=0), "stop.max_tokens"),
        (StopConditions(max_tokens=3, min_tokens=4), "stop.min_tokens"),
        (StopConditions(stop=("x",) * 17), "stop.stop"),
        (StopConditions(stop=("a", "x" * 513)), "stop.stop[1]"),
        (StopConditions(stop_token_ids=(1,) * 65), "stop.stop_token_ids"),
        (OutputOptions(num_choices=0), "output.num_choices"),
        (OutputOptions(top_logprobs=21, logprobs=True), "output.top_logprobs"),
        (OutputOptions(top_logprobs=1), "output.top_logprobs"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    wrong: SamplingParameters | StopConditions | OutputOptions, field: str
):
    with pytest.raises(InvalidArgument) as caught:
        wrong.check()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_what_is_not_asked_for_comes_from_the_model_then_from_us():
    defaults = SamplingDefaults(temperature=0.2, top_k=20)
    sampling = resolve_sampling(SamplingParameters(temperature=0.0), defaults, seed=3, choice=0)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.0, 20, 1.0, 3)
    assert resolve_sampling(SamplingParameters(), defaults, seed=3, choice=1).seed != 3
