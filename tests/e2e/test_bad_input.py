"""What goes wrong on purpose ends in one clear error, in the shape that its reader knows, and the house stays up."""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from tests.e2e.conftest import LARES, STARTER, House

CHAT = {"model": STARTER, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def post(
    house: House, path: str, body: bytes, content_type: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{house.url}{path}", body, {"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (CHAT | {"model": "nobody"}, 404, "model"),
        (CHAT | {"messages": []}, 400, "messages"),
        (CHAT | {"messages": "hello"}, 400, "messages"),
        (CHAT | {"temperature": 9}, 400, "temperature"),
        (CHAT | {"temperature": "hot"}, 400, "temperature"),
        (CHAT | {"max_tokens": 0}, 400, "max_tokens"),
        (CHAT | {"n": 1_000_000}, 400, "n"),
        (CHAT | {"logit_bias": {"4000000000": 1}}, 400, "logit_bias"),
        (CHAT | {"logprobs": True, "top_logprobs": 2**31}, 400, "top_logprobs"),
        (CHAT | {"stop": ["x"] * 1000}, 400, "stop"),
        (CHAT | {"response_format": {"type": "json_object"}}, 400, "response_format"),
        (CHAT | {"messages": [{"role": "user", "content": "word " * 20_000}]}, 400, None),
        (CHAT | {"messages": [{"role": "user", "content": "word " * 2_000_000}]}, 400, None),
        (CHAT | {"messages": [{"role": "user", "content": "word " * 4_000_000}]}, 413, None),
    ],
)
def test_bad_chat_is_refused_in_openai_shape(
    house: House, body: dict[str, Any], status: int, param: str | None
) -> None:
    for stream in (False, True):
        got, answer = post(house, "/chat/completions", json.dumps(body | {"stream": stream}).encode())
        assert got == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        if param is not None:
            assert param in str(answer["error"]["param"])


def test_body_that_is_not_json_is_refused(house: House) -> None:
    status, answer = post(house, "/chat/completions", b'{"model": ')
    assert status == 400
    assert "JSON" in answer["error"]["message"]


def test_oversize_body_is_refused(house: House) -> None:
    status, answer = post(house, "/chat/completions", b'{"model": "' + b"x" * (64 * 1024 * 1024) + b'"}')
    assert status == 413
    assert answer["error"]["message"]


def test_broken_audio_is_refused(house: House) -> None:
    model = house.pull("whisper-tiny.en")
    client = openai.OpenAI(base_url=house.url, api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model=model, file=("noise.wav", os.urandom(5000)))
    assert "cannot be read as audio" in str(caught.value)


def test_unknown_path_is_an_error_in_openai_shape(house: House) -> None:
    status, answer = post(house, "/nothing/here", b"{}")
    assert status == 404
    assert answer["error"]["message"]


async def test_grpc_error_is_a_google_rpc_status_that_names_the_field(house: House) -> None:
    request = pb.GenerateRequest(model=STARTER, text="Hi", sampling=pb.SamplingParameters(temperature=9))
    async with house.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.InferenceServiceStub(channel).Generate(request, timeout=60).read()
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    details = {detail.type_url.rpartition(".")[2]: detail for detail in status.details}
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    details["ErrorInfo"].Unpack(info)
    details["BadRequest"].Unpack(bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (info.domain, info.reason) == ("lares", "INVALID_ARGUMENT")
    assert [violation.field for violation in bad.field_violations] == ["sampling.temperature"]


def test_embedding_model_does_not_chat_and_says_so(house: House) -> None:
    model = house.pull("all-minilm-l6-v2")
    status, answer = post(house, "/chat/completions", json.dumps(CHAT | {"model": model}).encode())
    assert status == 400
    assert answer["error"]["code"] == "wrong_model_kind"


def test_killed_worker_is_one_clean_error_and_the_next_request_is_answered(house: House) -> None:
    client = openai.OpenAI(base_url=house.url, api_key="none", max_retries=0)

    def ask(max_tokens: int) -> Any:
        return client.completions.create(
            model=STARTER, prompt="Once", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
        )

    stream = ask(400)
    next(stream)
    pid = next(
        m["worker_pid"] for m in house.json("ps")["loaded_models"] if m["name"] == f"loadedModels/{STARTER}"
    )
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert "worker" in str(caught.value).lower()
    assert list(ask(4))
    assert house.lares("status").returncode == 0


def test_failed_pull_lists_nothing(house: House, tmp_path: Path) -> None:
    before = house.json("list")
    (tmp_path / "model.gguf").write_bytes(b"this is no model")
    for source in (
        "nobody-knows-this",
        f"file:{tmp_path / 'model.gguf'}",
        "pypi:six==1.16.0",
        "file:/etc/passwd",
        "../../etc",
    ):
        done = house.lares("pull", source, check=False)
        assert done.returncode == 1, source
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr
    assert house.json("list") == before


def test_command_without_a_house_says_how_to_start_one() -> None:
    done = subprocess.run(
        [LARES, "list", "--grpc=127.0.0.1:1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "lares up" in done.stderr
