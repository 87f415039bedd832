"""Steps of a fixed shape say what steps of their own size say. What records and replays them needs a card."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.inference.adapters.runner.cuda_ops import CudaOps
from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.graphs import DecodeSteps, GraphedDecode, StaticDecode
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE
from services.inference.adapters.runner.ops import Ops, TorchOps
from services.inference.adapters.runner.static_batch import StaticShape
from services.inference.core.engine import Chunk, EngineFacts, EngineSequence
from services.inference.core.sampling import Sampling
from tests.unit.services.inference.adapters.runner.tiny_models import (
    CPU,
    FAMILIES,
    NUM_BLOCKS,
    Runner,
    sequence,
    tiny_model,
)

META = torch.device("meta")
KINDS = ("llama", "mistral with a window", "gemma 2", "gemma 3", "qwen 2 with windows in its upper layers")


def static_steps(runner: Runner, max_shapes: int = 8) -> DecodeSteps:
    def make(shape: StaticShape) -> StaticDecode:
        return StaticDecode(runner.decoder, runner.pool, runner.static_batcher, shape, CPU)

    return DecodeSteps(make, max_shapes=max_shapes)


def runner_with_pasts(
    tmp_path: Path, kind: str, lengths: Sequence[int], ops: Ops
) -> tuple[Runner, list[EngineSequence]]:
    """Sequences of so many tokens, of which all but the last are computed, and blocks for that one."""
    tiny_model(*FAMILIES[kind]).save_pretrained(tmp_path)
    runner = Runner(tmp_path, ops=ops)
    rng = random.Random(11)
    sequences = [
        sequence(index, [rng.randrange(3, 199) for _ in range(length)])
        for index, length in enumerate(lengths)
    ]
    runner.step([(each, len(each.prompt) - 1) for each in sequences if len(each.prompt) > 1])
    for each in sequences:
        runner.make_room(each, 1)
    return runner, sequences


def chunks_of(sequences: Sequence[EngineSequence]) -> list[Chunk]:
    return [Chunk(each, 1) for each in sequences]


@pytest.mark.parametrize("ops", [TorchOps(), CudaOps()], ids=["reference", "CUDA's"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_and_blocks_change_no_logits(kind: str, ops: Ops, tmp_path: Path):
    runner, sequences = runner_with_pasts(tmp_path, kind, (1, 16, 17, 33, 49, 128, 129, 150, 2, 95, 96), ops)
    steps = static_steps(runner)
    rng = random.Random(2)
    for _ in range(12):
        chosen = rng.sample(sequences, rng.choice((1, 2, 3, 5, 9, 11)))
        with torch.inference_mode():
            found = steps.run(chunks_of(chosen))
            assert found is not None
            logits = runner.decoder.logits(found)  # (chosen, vocab)
        before = [each.num_computed for each in chosen]
        wanted = runner.step([(each, 1) for each in chosen])
        for each, computed in zip(chosen, before, strict=True):
            each.num_computed = computed
        torch.testing.assert_close(
            logits, torch.cat([wanted[each.sequence_id] for each in chosen]), atol=1e-4, rtol=1e-4
        )
    assert len(steps.shapes) > 1


def test_keys_written_by_a_static_step_are_those_of_an_ordinary_one(tmp_path: Path):
    runner, sequences = runner_with_pasts(tmp_path, "llama", (40, 70, 5), TorchOps())
    with torch.inference_mode():
        static_steps(runner).run(chunks_of(sequences))
    written = [layer[:NUM_BLOCKS].clone() for layer in runner.pool.layers]
    runner.step([(each, 1) for each in sequences])
    for layer, before in zip(runner.pool.layers, written, strict=True):
        torch.testing.assert_close(layer[:NUM_BLOCKS], before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ops", [TorchOps(), CudaOps()], ids=["reference", "CUDA's"])
def test_rows_that_fill_up_are_numbers_and_write_to_no_block_that_is_read(ops: Ops, tmp_path: Path):
    runner, sequences = runner_with_pasts(tmp_path, "mistral with a window", (40, 3, 20), ops)
    shape = StaticShape.of(chunks_of(sequences))
    assert shape == StaticShape(4, 8)
    step = StaticDecode(runner.decoder, runner.pool, runner.static_batcher, shape, CPU)
    runner.decoder._embedding[0] = 0.5  # That of the padding token is zero in a new model, and writes zeros.
    before = [layer.clone() for layer in runner.pool.layers]
    with torch.inference_mode():
        step.run(chunks_of(sequences))
        assert step._replay().isfinite().all()
    own = {each.blocks[-1] for each in sequences}
    for layer, old in zip(runner.pool.layers, before, strict=True):
        changed = {block for block in range(len(layer)) if not layer[block].equal(old[block])}
        assert changed == own | {runner.pool.scrap_block}


@pytest.mark.parametrize("ops", [TorchOps(), CudaOps()], ids=["reference", "CUDA's"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_leaves_the_device_for_nothing(family: str, ops: Ops, tmp_path: Path):
    """The meta device refuses tensors of the CPU beside its own, and to tell a value: what a recording cannot hold."""
    tiny_model(*FAMILIES[family]).save_pretrained(tmp_path)
    runner = Runner(tmp_path, ops=ops, device=META)
    sequences = [sequence(index, [5] * length) for index, length in enumerate((1, 33, 70))]
    mixed = runner.step([(sequences[0], 1), (sequences[1], 32), (sequences[2], 69)])
    assert {logits.device for logits in mixed.values()} == {META}
    for each in sequences[1:]:
        runner.make_room(each, 1)
    decodes = chunks_of(sequences[1:])
    shape = StaticShape.of(decodes)
    assert shape is not None
    with torch.inference_mode():
        hidden = StaticDecode(runner.decoder, runner.pool, runner.static_batcher, shape, META).run(decodes)
    assert hidden.device == META


@dataclass
class Card:
    """Stands in for torch.cuda: counts, and computes at once what it is told to record."""

    num_recordings: int = 0
    num_replays: int = 0

    def stream(self, device: torch.device) -> "Card":
        return self

    def wait_stream(self, other: "Card") -> None:
        pass

    @contextmanager
    def on(self, stream: "Card") -> Iterator[None]:
        yield

    @contextmanager
    def recording(self, graph: "Card", *, pool: tuple[int, int]) -> Iterator[None]:
        assert pool == (0, 1)
        self.num_recordings += 1
        yield

    def replay(self) -> None:
        self.num_replays += 1


def test_a_step_is_recorded_once_for_each_shape_and_replayed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    card = Card()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", card.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", card.stream)
    monkeypatch.setattr(torch.cuda, "stream", card.on)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: card)
    monkeypatch.setattr(torch.cuda, "graph", card.recording)
    runner, sequences = runner_with_pasts(tmp_path, "llama", (40, 70, 5), TorchOps())
    steps = DecodeSteps.graphed(runner.decoder, runner.pool, runner.static_batcher, CPU)
    with torch.inference_mode():
        found = steps.run(chunks_of(sequences))
        again = steps.run(chunks_of(sequences))
        wanted = static_steps(runner).run(chunks_of(sequences))
        assert found is not None
        assert again is not None
        assert wanted is not None
        assert (card.num_recordings, card.num_replays) == (1, 2)
        torch.testing.assert_close(found, wanted)
        assert again.data_ptr() == found.data_ptr()
        steps.run(chunks_of(sequences[:1]))
    assert (card.num_recordings, card.num_replays) == (2, 3)
    assert all(isinstance(step, GraphedDecode) for step in steps._by_shape.values())


def idle(sequence_id: int, num_tokens: int) -> EngineSequence:
    """A sequence whose last token is to be computed."""
    each = sequence(sequence_id, [5] * num_tokens)
    each.num_computed = num_tokens - 1
    each.blocks = list(range(-(-num_tokens // BLOCK_SIZE)))
    return each


@pytest.mark.parametrize(
    ("num_rows", "rounded"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 24), (32, 32), (33, 48), (200, 208), (256, 256)],
)
def test_rows_are_rounded_up(num_rows: int, rounded: int):
    shape = StaticShape.of(chunks_of([idle(index, 100) for index in range(num_rows)]))
    assert shape == StaticShape(rounded, 8)


@pytest.mark.parametrize(
    ("num_tokens", "rounded"), [(1, 8), (128, 8), (129, 16), (256, 16), (257, 32), (4000, 256)]
)
def test_blocks_are_rounded_up_to_powers_of_two(num_tokens: int, rounded: int):
    assert StaticShape.of(chunks_of([idle(0, num_tokens)])) == StaticShape(1, rounded)


def test_a_prompt_among_the_chunks_takes_the_ordinary_way():
    prompt = sequence(1, [5] * 20)
    prompt.blocks = [1, 2]
    assert StaticShape.of([Chunk(idle(0, 10), 1), Chunk(prompt, 20)]) is None


def test_an_adapter_takes_the_ordinary_way():
    adapted = idle(0, 10)
    adapted.adapter = "poet"
    assert StaticShape.of(chunks_of([idle(1, 10), adapted])) is None


def test_one_long_past_among_many_short_takes_the_ordinary_way():
    short = [idle(index, 20) for index in range(63)]
    assert StaticShape.of(chunks_of([*short, idle(63, 200)])) is not None
    assert StaticShape.of(chunks_of([*short, idle(63, 8000)])) is None


def test_more_rows_than_any_shape_has_take_the_ordinary_way():
    assert StaticShape.of(chunks_of([idle(index, 4) for index in range(257)])) is None


class Recorded(StaticDecode):
    """Stands in for a step on a card: computes nothing, says which shape it is."""

    def __init__(self, shape: StaticShape) -> None:
        self.shape = shape

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        return torch.full((len(chunks), 1), self.shape.num_rows)


def test_the_least_recently_used_shape_makes_room():
    made: list[StaticShape] = []

    def make(shape: StaticShape) -> StaticDecode:
        made.append(shape)
        return Recorded(shape)

    steps = DecodeSteps(make, max_shapes=2)
    for num_rows in (1, 2, 1, 4, 1, 2):
        steps.run(chunks_of([idle(index, 4) for index in range(num_rows)]))
    assert [shape.num_rows for shape in made] == [1, 2, 4, 2]
    assert [shape.num_rows for shape in steps.shapes] == [1, 2]


def test_a_full_card_computes_on_without_graphs():
    tries: list[StaticShape] = []

    def make(shape: StaticShape) -> StaticDecode:
        tries.append(shape)
        raise torch.OutOfMemoryError

    steps = DecodeSteps(make)
    assert steps.run(chunks_of([idle(0, 4)])) is None
    assert steps.run(chunks_of([idle(0, 4)])) is None
    assert len(tries) == 1


def test_an_engine_with_static_steps_picks_the_same_tokens(tmp_path: Path):
    tiny_model(*FAMILIES["mistral with a window"]).save_pretrained(tmp_path)
    texts: list[list[list[int]]] = []
    for is_static in (False, True):
        runner = Runner(tmp_path)
        facts = EngineFacts(256, 199, frozenset(), "cpu", "float32", BLOCK_SIZE, NUM_BLOCKS, True)
        steps = static_steps(runner) if is_static else None
        engine = RunnerEngine(runner.decoder, runner.pool, runner.batcher, facts, steps)
        rng = random.Random(4)
        sequences = [
            EngineSequence(
                index,
                [rng.randrange(3, 199) for _ in range(rng.randrange(1, 40))],
                Sampling(seed=index, temperature=float(index % 2)),
                num_logprobs=2 if index == 3 else None,
            )
            for index in range(5)
        ]
        for _ in range(40):
            chunks = [Chunk(each, each.num_tokens - each.num_computed) for each in sequences]
            for chunk in chunks:
                runner.make_room(chunk.sequence, chunk.num_tokens)
            for chunk, result in zip(chunks, engine.step(chunks), strict=True):
                assert result.picked is not None
                chunk.sequence.num_computed += chunk.num_tokens
                chunk.sequence.output.append(result.picked.token_id)
        texts.append([each.output for each in sequences])
        assert steps is None or len(steps.shapes) == 1
    assert texts[0] == texts[1]
