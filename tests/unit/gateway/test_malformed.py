"""G2, short: a thousand malformed requests, and never a 500."""

import json
import random

import httpx2

from tests.unit.gateway.fake_services import MODEL

NUM_REQUESTS = 1000

VALID: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": MODEL, "prompt": "hi", "max_tokens": 2, "stop": ["x"]},
    "/v1/embeddings": {"model": MODEL, "input": ["hi"], "dimensions": 4},
    "/v1/fine_tuning/jobs": {"model": MODEL, "training_file": "file-x", "hyperparameters": {"n_epochs": 1}},
}
ODD_VALUES: list[object] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, "", "x", "\x00", "\ud800", "💥" * 99,
    [], [[]], [None], {}, {"": None}, [{}], ["x", 1], {"type": "text"}, "NaN", "a" * 100_000, [0] * 5000,
]  # fmt: skip
RAW_BODIES = [
    b"", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"{}{}", b"{'a':1}", b'{"a":01}', b'{"a":1,}', b"\xef\xbb\xbf{}",
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":"\\x"}',
    b'{"model":"\xff\xfe"}', b"\xff\xfe{\x00}\x00", b"\x00" * 100, b'{"model":"a","model":"b","model":1}',
    b"[" * 100_000, b'{"a":' * 100_000, b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"n":' + b"9" * 10_000 + b"}", b'{"model":"tiny","messages":',
]  # fmt: skip
FORMS = [
    b"", b"--x", b"--x\r\n", b"--x--\r\n", b"--x\r\n\r\n\r\n--x--", b"--y\r\n", b"\x00" * 1000,
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF',
    b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="[]"\r\n\r\nz\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="../\x00\xff"\r\n\r\nz\r\n--x--\r\n',
    b"--x\r\nContent-Disposition: form-data\r\n\r\nz\r\n--x--\r\n",
]  # fmt: skip
MEDIA_TYPES = [
    "application/json", "application/json; charset=utf-16", "text/plain", "", "application/x-www-form-urlencoded",
    "multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "y" * 500, "json",
]  # fmt: skip


def mutated(path: str, chance: random.Random) -> bytes:
    """A valid body with one to three things in it made odd, perhaps cut off or with a byte changed."""
    body = json.loads(json.dumps(VALID[path]))
    for _ in range(chance.randint(1, 3)):
        target, key = (
            body,
            chance.choice([*body, "n", "seed", "stop", "tools", "logit_bias", "top_p", "stream_options"]),
        )
        if isinstance(target.get(key), list) and target[key] and chance.random() < 0.5:
            target, key = target[key], 0
        if isinstance(target, list) and isinstance(target[0], dict) and chance.random() < 0.7:
            target, key = target[0], chance.choice(["role", "content", "name", "tool_calls"])
        target[key] = chance.choice(ODD_VALUES)
    data = json.dumps(body).encode()
    match chance.randrange(4):
        case 0:
            data = data[: chance.randrange(len(data))]
        case 1:
            position = chance.randrange(len(data))
            data = data[:position] + chance.randbytes(1) + data[position + 1 :]
    return data


async def test_a_thousand_malformed_requests_get_no_500(http: httpx2.AsyncClient) -> None:
    chance = random.Random(2)
    statuses: dict[int, int] = {}
    for number in range(NUM_REQUESTS):
        path = chance.choice([*VALID, "/v1/audio/transcriptions", "/v1/files"])
        media_type = "application/json" if path in VALID else "multipart/form-data; boundary=x"
        if number % 10 == 0:
            media_type = chance.choice(MEDIA_TYPES)
        if path not in VALID:
            body = chance.choice(FORMS)
        elif number % 3 == 0:
            body = chance.choice(RAW_BODIES)
        else:
            body = mutated(path, chance)
        answer = await http.post(path, content=body, headers={"content-type": media_type})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 404, 408, 413, 415), (path, body[:300], answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"]
            assert error["type"] in ("invalid_request_error", "not_found_error")
    assert statuses[400] > NUM_REQUESTS / 2
    assert (await http.get("/healthz")).status_code == 200
