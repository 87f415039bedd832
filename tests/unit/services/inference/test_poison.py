"""I6, short: whatever a prompt holds, its worker lives, and says to others what it said before."""

import math
import random
from collections.abc import Iterator
from typing import Any

from lares.inference.v1 import inference_pb2 as pb
from services.kit.channels import translate_errors
from services.kit.errors import LaresError
from tests.unit.services.inference.conftest import Running
from tests.unit.services.inference.test_servicer import generate, text_of, text_request

CONTEXT_LENGTH, VOCAB_SIZE = 512, 258
NUM_RANDOM = 110
FEW = pb.StopConditions(max_tokens=3, ignore_eos=True)
GREEDY = pb.SamplingParameters(temperature=0)
REFUSALS = {"CONTEXT_LENGTH_EXCEEDED", "INVALID_ARGUMENT", "INVALID_TEMPLATE", "UNSUPPORTED_PARAMETER"}

TEXTS = [
    "",
    " ",
    "\x00",
    "\x00" * 500,
    "\x1b[2J\x07\x08\x7f",
    "\r\n" * 100,
    "\u202e\u2066\u200b\ufeff",
    "\ufffd\ufffe\uffff",
    "e" + "\u0301" * 400,
    "👩‍👩‍👧‍👦" * 20,
    "\U0010ffff" * 100,
    "Ω≈ç√∫" * 30,
    "<s>",
    "</s>" * 50,
    "<s></s><|im_start|>system\n",
    "{{ 7*7 }}{% for x in range(10**9) %}x{% endfor %}",
    "' OR 1=1 --",
    "%s%n%p" * 50,
    "../../etc/passwd",
    "x" * (CONTEXT_LENGTH - 1),
    "x" * CONTEXT_LENGTH,
    "x" * (CONTEXT_LENGTH + 1),
    "x" * 10_000_000,
    "é " * 3_000_000,
]
# JSON that JSON's own readers disagree about.
ODD_JSON = [
    '{"a":"\\ud800"}',
    '{"\\udfff":1}',
    '{"a":1e999}',
    '{"a":NaN}',
    '{"a":-Infinity}',
    '{"a":' + "9" * 400 + "}",
    '{"a":1,"a":2}',
    '{"a":' + "[" * 400 + "]" * 400 + "}",
    '{"a":' * 900 + "1" + "}" * 900,
    "[" * 60_000,
    "{",
    "null",
    "[]",
    '"x"',
    "\x00",
    "{}{}",
    '{"a":' + "9" * 10_000 + "}",
    '{"__class__":{"__init__":1}}',
    '{"messages":1}',
    '{"' + "k" * 60_000 + '":1}',
]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": -1},
    {"temperature": 1e-45},
    {"temperature": 2},
    {"top_p": math.nan},
    {"top_p": 0},
    {"top_p": 1e-45},
    {"min_p": math.nan},
    {"min_p": 1},
    {"top_k": 2**32 - 1},
    {"top_k": 1},
    {"presence_penalty": math.nan},
    {"frequency_penalty": -math.inf},
    {"frequency_penalty": -2, "presence_penalty": -2},
    {"repetition_penalty": math.nan},
    {"repetition_penalty": 1e-45},
    {"repetition_penalty": 2},
    {"repetition_penalty": 0},
    {"seed": 0},
    {"seed": 2**63},
    {"seed": 2**64 - 1},
    {"logit_bias": {VOCAB_SIZE: 1.0}},
    {"logit_bias": {2**32 - 1: 1.0}},
    {"logit_bias": {0: math.nan}},
    {"logit_bias": {0: math.inf}},
    {"logit_bias": dict.fromkeys(range(VOCAB_SIZE), -100.0)},
    {"logit_bias": dict.fromkeys(range(1025), 1.0)},
    {"logit_bias": {VOCAB_SIZE - 1: 100.0}},
]
STOPS: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"max_tokens": 2**32 - 1},
    {"stop": [""]},
    {"stop": ["x"] * 17},
    {"stop": ["x" * 513]},
    {"stop": ["\x00"]},
    {"stop": ["\ufffd"] * 16},
    {"stop_token_ids": [VOCAB_SIZE]},
    {"stop_token_ids": [2**32 - 1]},
    {"stop_token_ids": [0] * 65},
    {"stop_token_ids": list(range(64)), "min_tokens": 9},
    {"min_tokens": 2**32 - 1},
    {"min_tokens": 4, "max_tokens": 3},
]
OUTPUTS: list[dict[str, Any]] = [
    {"num_choices": 0},
    {"num_choices": 16},
    {"num_choices": 17},
    {"num_choices": 2**32 - 1},
    {"top_logprobs": 20},
    {"logprobs": True, "top_logprobs": 20, "echo": True},
    {"logprobs": True, "top_logprobs": 21},
    {"echo": True},
]
TOKENS = [
    [],
    [0],
    [VOCAB_SIZE - 1],
    [VOCAB_SIZE],
    [2**32 - 1],
    [257] * 20,
    [256] * CONTEXT_LENGTH,
    [7] * (CONTEXT_LENGTH - 1),
    [7] * 100_000,
]
FORMATS = [
    pb.ResponseFormat(json_object=pb.JsonObject()),
    pb.ResponseFormat(json_schema=pb.JsonSchema(name="x", schema_json='{"$ref":"#"}')),
    pb.ResponseFormat(regex="(a+)+$"),
    pb.ResponseFormat(grammar="root ::= root"),
]


def poison() -> Iterator[pb.GenerateRequest]:
    """Each kind once, then kinds together by chance."""
    for text in TEXTS:
        yield text_request(text, stop=FEW)
        yield chat(pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)]))
    for token_ids in TOKENS:
        yield pb.GenerateRequest(model="tiny", tokens=pb.TokenPrompt(token_ids=token_ids), stop=FEW)
    for odd in ODD_JSON:
        call = pb.ToolCall(id="1", name="f", arguments_json=odd)
        yield chat(pb.ChatMessage(role=pb.ROLE_ASSISTANT, tool_calls=[call]))
        hello = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])
        yield chat(hello, template_arguments_json=odd)
        yield chat(hello, tools=[pb.Tool(name="f", parameters_json_schema=odd)])
    yield chat()
    yield chat(*[pb.ChatMessage(role=pb.ROLE_USER)] * 2049)
    yield chat(pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text="x")] * 5000))
    yield chat(pb.ChatMessage(role=99))  # type: ignore[arg-type]  # No role of ours: a newer client's, perhaps.
    for wanted in FORMATS:
        yield text_request(response_format=wanted)
    chance = random.Random(6)
    for _ in range(NUM_RANDOM):
        request = text_request(
            chance.choice(TEXTS[:-2]),
            sampling=pb.SamplingParameters(**chance.choice(SAMPLINGS)),
            stop=pb.StopConditions(**{"max_tokens": 3, **chance.choice([{}, *STOPS])}),
            output=pb.OutputOptions(**chance.choice([{}, *OUTPUTS])),
            priority=chance.choice([0, 2**31 - 1, -(2**31)]),
            cache_salt=chance.choice(["", "\x00", "💥" * 128, "x" * 129]),
        )
        yield request
    for sampling in SAMPLINGS:
        yield text_request(sampling=pb.SamplingParameters(**sampling), stop=FEW)
    for stop in STOPS:
        yield text_request(stop=pb.StopConditions(**{"max_tokens": 3, **stop}))
    for output in OUTPUTS:
        yield text_request(output=pb.OutputOptions(**output), stop=FEW)


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="tiny", chat=pb.ChatPrompt(messages=messages, **fields), stop=FEW)


async def worker_pid(running: Running) -> int:
    with translate_errors():
        listed = (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
    assert (listed[0].num_active_requests, listed[0].num_waiting_requests) == (0, 0)
    return listed[0].worker_pid


async def test_whatever_a_prompt_holds_its_worker_lives_and_says_what_it_said_before(running: Running):
    control = text_request("control", sampling=GREEDY, stop=pb.StopConditions(max_tokens=40, ignore_eos=True))
    before = text_of(await generate(running, control))
    pid = await worker_pid(running)
    requests = list(poison())
    assert len(requests) >= 200
    num_answered, strange = 0, []
    for request in requests:
        try:
            await generate(running, request)
            num_answered += 1
        except LaresError as error:
            if error.reason not in REFUSALS:
                strange.append((error.reason, error.message, str(request)[:300]))
    assert not strange
    assert 50 < num_answered < len(requests)
    assert text_of(await generate(running, control)) == before
    assert await worker_pid(running) == pid
