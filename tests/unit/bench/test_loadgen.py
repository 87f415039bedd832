import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.loadgen import Answer, Load, LoadFailed, events, percentile, run, summary
from tests.unit.bench.served import served

TEXT = {"choices": [{"delta": {"content": "xin chào"}, "finish_reason": None}]}
END = {"choices": [{"delta": {}, "finish_reason": "length"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


def load(base_url: str, **changed: Any) -> Load:
    given: dict[str, Any] = {
        "base_url": base_url,
        "model": "m",
        "concurrency": 2,
        "num_requests": 4,
        "prompt_tokens": 8,
        "max_tokens": 2,
        "shared_prefix": 3,
        "temperature": 0.0,
        "extra_body": {"ignore_eos": True},
        "num_warmups": 1,
        "seed": 1,
        "timeout_s": 30.0,
        "keep_alive": False,
    }
    return Load(**(given | changed))


def streaming(*sent: object, bodies: list[dict[str, Any]] | None = None) -> Starlette:
    async def stream() -> AsyncIterator[str]:
        for event in sent:
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"

    async def chat(request: Request) -> Response:
        if bodies is not None:
            bodies.append(await request.json())
        return StreamingResponse(stream(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def test_an_event_is_read_only_when_it_has_arrived_whole() -> None:
    assert events(b'data: {"a": 1}\r\n\r\ndata: {"b"') == ([{"a": 1}], b'data: {"b"')
    assert events(b'data: {"b": 2}\n\ndata: [DONE]\n\n') == ([{"b": 2}], b"")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([END, USAGE], "no text"),
        ([TEXT, USAGE], "without a finish_reason"),
        ([TEXT, END], "no usage"),
        ([TEXT, {"error": {"message": "worker lost"}}], "worker lost"),
    ],
)
def test_an_answer_that_is_not_whole_fails_the_run(sent: list[object], why: str) -> None:
    with served(streaming(*sent)) as url, pytest.raises((LoadFailed, BaseExceptionGroup)) as caught:
        asyncio.run(run(load(url, num_warmups=0), None))
    assert why in str(leaf(caught.value))


def test_an_http_error_fails_the_run() -> None:
    async def refuse(request: Request) -> Response:
        return JSONResponse({"error": {"message": "full"}}, status_code=503)

    app = Starlette(routes=[Route("/v1/chat/completions", refuse, methods=["POST"])])
    with served(app) as url, pytest.raises(LoadFailed, match="HTTP 503"):
        asyncio.run(run(load(url), None))


def test_a_row_counts_the_measured_requests_and_their_usage() -> None:
    bodies: list[dict[str, Any]] = []
    with served(streaming(TEXT, TEXT, END, USAGE, bodies=bodies)) as url:
        row = asyncio.run(run(load(url), None))
    assert row["req"] == 4
    assert row["out_tokens"] == 8
    assert row["short"] == 0
    assert row["prompt_tok"] == 9
    assert len(bodies) == 5
    assert all(body["ignore_eos"] for body in bodies)
    asked = [body["messages"] for body in bodies]
    assert all(messages[0] == asked[0][0] for messages in asked)
    users = {messages[1]["content"] for messages in asked}
    assert len(users) == 5
    assert all(len(text.split()) == 8 for text in users)


def test_equal_seeds_ask_equal_prompts() -> None:
    asked: list[list[dict[str, Any]]] = [[], []]
    for bodies in asked:
        with served(streaming(TEXT, END, USAGE, bodies=bodies)) as url:
            asyncio.run(run(load(url, concurrency=1), None))
    assert asked[0] == asked[1]


def test_times_are_taken_between_events_that_carry_text() -> None:
    answer = Answer(10.0, [10.5, 10.7, 11.5], 12.0, "stop", {"completion_tokens": 5})
    row = summary(load(""), [answer], wall_s=2.0)
    assert row["ttft_p50_ms"] == 500
    assert row["itl_p50_ms"] == 500
    assert row["tpot_p50_ms"] == 250
    assert row["decode_tok_s_p50"] == 4
    assert row["out_tok_s"] == 2.5
    assert row["short"] == 0


def test_an_answer_below_max_tokens_is_told_as_short() -> None:
    answer = Answer(0.0, [1.0], 1.0, "stop", {"completion_tokens": 1})
    assert summary(load(""), [answer], wall_s=1.0)["short"] == 1


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2.5), (100, 4)])
def test_a_percentile_lies_between_its_neighbours(percent: float, value: float) -> None:
    assert percentile([4, 2, 3, 1], percent) == value


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 50) is None
