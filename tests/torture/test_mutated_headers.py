"""RELIABILITY.md, D14: headers of GGUF and safetensors that somebody changed, read by the real, capped worker."""

import asyncio
import json
import os
import random
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.downloader.adapters.inspect_worker import Inspect
from services.downloader.adapters.worker_inspector import WorkerInspector, spec
from services.downloader.core.models import Format
from services.kit.errors import UnsupportedFormat, WorkerLost
from services.kit.worker import Worker
from tests.torture.numbers import num
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(num(120, 3600))]

NUM_MUTATIONS = num(2_000, 100_000)
MAX_CPU_S = 1.0
MAX_BYTES = 512 * 1024**2
# What parsers trip over: in one byte, and as a length or a count.
BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B)
NUMBERS = (0, 1, 255, 65_536, 2**20, 2**31 - 1, 2**32 - 1, 2**40, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    2**48,
    2**63,
    2**200,
    1.5,
    1e400,
    "",
    "\ud800",
    "x" * 10_000,
    "F32",
    [],
    {},
    [[]],
    {"": 0},
)
TENSOR = {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "id2label": {"0": "a"}}

Read = Callable[[dict[str, bytes]], Awaitable[object]]


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def safetensors(raw: bytes) -> bytes:
    return text(raw) + bytes(64)


def largest() -> Iterator[tuple[str, bytes]]:
    """Files that are all header, each with as much of one thing as it may have, or more. (name, content)"""
    begin, key = (
        b"GGUF" + struct.pack("<I", 3),
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
    )
    for num_texts in (1_500_000, 1_500_001):
        array = text(b"k") + struct.pack("<IIQ", 9, 8, num_texts) + bytes(8 * num_texts)
        yield "m.gguf", begin + struct.pack("<QQ", 0, 2) + key + array
    keys = b"".join(
        text(b"%d" % number) + struct.pack("<I", 8) + text(b"x" * 100) for number in range(65_535)
    )
    tensors = b"".join(text(b"t") + struct.pack("<IQIQ", 1, 2**48, 0, 0) for _ in range(65_536))
    yield "m.gguf", begin + struct.pack("<QQ", 65_536, 65_536) + key + keys + tensors
    long = b"".join(text(b"%d" % number) + struct.pack("<I", 8) + text(bytes(2**24)) for number in range(3))
    yield "m.gguf", begin + struct.pack("<QQ", 0, 4) + key + long
    described = b'"%d":{"dtype":"F32","shape":[281474976710656],"data_offsets":[0,64]}'
    yield (
        "m.safetensors",
        safetensors(b"{" + b",".join(described % number for number in range(110_000)) + b"}"),
    )
    for item, num_items in (
        (b"1", 4_000_000),
        (b"281474976710656", 500_000),
        (b"{}", 2_500_000),
        (b"[", 8_000_000),
    ):
        items = b",".join([item] * num_items) if item != b"[" else item * num_items
        yield (
            "m.safetensors",
            safetensors(b'{"a":{"dtype":"F32","shape":[' + items + b'],"data_offsets":[0,0]}}'),
        )
    for size in (2_500_000, 5_000_000):
        yield "config.json", b'{"architectures":[' + b",".join([b"{}"] * size) + b"]}"


def mutated(choose: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(choose.randrange(1, 5)):
        at = choose.randrange(len(changed))
        match choose.randrange(5):
            case 0 | 1:
                changed[at] = choose.choice(BYTES)
            case 2:
                code = choose.choice(("<I", "<Q"))
                number = struct.pack(code, choose.choice(NUMBERS) % 2 ** (8 * struct.calcsize(code)))
                changed[at : at + len(number)] = number
            case 3:
                changed[at:at] = changed[at : at + choose.randrange(1, 64)]
            case 4:
                del changed[at : at + choose.randrange(1, 16)]
        if not changed:
            break
    return bytes(changed[: choose.randrange(len(changed) + 1)] if choose.random() < 0.2 else changed)


def mutated_json(choose: random.Random, table: object) -> object:
    """One value somewhere in it is another."""
    if choose.random() < 0.3 or not isinstance(table, dict | list) or not table:
        return choose.choice(VALUES)
    if isinstance(table, list):
        at = choose.randrange(len(table))
        return [*table[:at], mutated_json(choose, table[at]), *table[at + 1 :]]
    name = choose.choice(list(table))
    return table | {name: mutated_json(choose, table[name])}


def cases(choose: random.Random) -> Iterator[dict[str, bytes]]:
    """Models without end, something of each changed."""
    gguf = gguf_bytes(tensors=((4, 8), (2, 3, 4)))
    header, config = {"__metadata__": {"format": "pt"}, "a": TENSOR, "b": TENSOR}, json.dumps(CONFIG).encode()
    while True:
        yield {"m.gguf": mutated(choose, gguf)}
        yield {
            "m.safetensors": mutated(choose, safetensors(json.dumps(header).encode())),
            "config.json": config,
        }
        raw = json.dumps(mutated_json(choose, header)).encode()
        changed = json.dumps(mutated_json(choose, CONFIG)).encode()
        yield {"m.safetensors": safetensors(raw), "config.json": config}
        yield {
            "m.safetensors": safetensors(json.dumps(header).encode()),
            "config.json": changed,
            "tokenizer_config.json": mutated(choose, changed),
        }


async def read_by_one_worker(files: Iterator[dict[str, bytes]], folder: Path) -> int:
    """Ask one worker about all of them. Returns how many of them it took for models."""
    worker = await Worker.start(spec())
    process = psutil.Process(worker.pid)
    num_models = 0
    try:
        spent_s = cpu_s(process)
        for model in files:
            for name, content in model.items():
                (folder / name).write_bytes(content)
            try:
                async with worker.call(Inspect({name: str(folder / name) for name in model}, [])) as call:
                    await anext(call)
                    num_models += 1
            except UnsupportedFormat:
                pass
            spent_s, before_s = cpu_s(process), spent_s
            assert spent_s - before_s <= MAX_CPU_S, {name: content[:1000] for name, content in model.items()}
        assert process.memory_info().rss <= MAX_BYTES
    finally:
        await worker.stop()
    return num_models


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def test_mutated_headers_are_read_or_refused(tmp_path: Path) -> None:
    some = cases(random.Random(14))
    num_models = await read_by_one_worker((next(some) for _ in range(NUM_MUTATIONS)), tmp_path)
    assert 0 < num_models < NUM_MUTATIONS


async def test_headers_as_large_as_they_may_be_are_read_or_refused(tmp_path: Path) -> None:
    def models() -> Iterator[dict[str, bytes]]:
        whole = {
            "m.safetensors": safetensors(json.dumps({"a": TENSOR}).encode()),
            "config.json": json.dumps(CONFIG).encode(),
        }
        for name, content in largest():
            yield {name: content} if name == "m.gguf" else whole | {name: content}

    assert await read_by_one_worker(models(), tmp_path) > 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only a pipe shows when the worker has opened its file")
async def test_a_worker_that_dies_of_a_file_takes_nothing_with_it(tmp_path: Path) -> None:
    inspector, pipe, whole = WorkerInspector(), tmp_path / "pipe", tmp_path / "m.gguf"
    os.mkfifo(pipe)
    whole.write_bytes(gguf_bytes())
    asking = asyncio.create_task(inspector.inspect({"model.bin": pipe, "vocabulary.txt": whole}))
    opened = await asyncio.to_thread(pipe.open, "wb")  # Returns when the other side reads.
    for child in psutil.Process().children():
        if "services.kit.worker_main" in child.cmdline():
            child.kill()
    opened.close()
    with pytest.raises(WorkerLost):
        await asking
    assert (await inspector.inspect({"m.gguf": whole})).facts.format is Format.GGUF
