"""Drives an engine as the loop does, one step at a time, where a test wants to say which step."""

from collections.abc import Sequence

from services.inference.core.engine import Chunk, ChunkResult, Engine, EngineSequence
from services.inference.core.sampling import Sampling
from services.inference.core.scheduler import Scheduler

GREEDY = Sampling(seed=1, temperature=0.0)


def sequence(
    sequence_id: int, prompt: Sequence[int] = (5, 6, 7), sampling: Sampling = GREEDY
) -> EngineSequence:
    """One that nobody has computed yet."""
    return EngineSequence(sequence_id, tuple(prompt), sampling)


class Driver:
    """An engine under a scheduler with room for all: what is added is computed by `step`."""

    def __init__(self, engine: Engine, *, max_batch_tokens: int = 4096) -> None:
        self.engine = engine
        self.scheduler = Scheduler(engine.facts, max_sequences=256, max_batch_tokens=max_batch_tokens)
        self.prompt_logprobs: dict[int, list[float]] = {}

    def add(self, *sequences: EngineSequence) -> None:
        """Let them in with the next step."""
        for each in sequences:
            self.scheduler.add(each)

    def step(self) -> list[tuple[Chunk, ChunkResult]]:
        """All that is to be done now; what was picked is appended."""
        chunks = self.scheduler.schedule()
        starts = [chunk.start for chunk in chunks]
        results = self.engine.step(chunks) if chunks else []
        self.scheduler.advance(chunks)
        for chunk, start, result in zip(chunks, starts, results, strict=True):
            told = self.prompt_logprobs.setdefault(chunk.sequence.sequence_id, [])
            told[start : start + len(result.prompt_logprobs)] = result.prompt_logprobs
            if result.picked is not None:
                chunk.sequence.output.append(result.picked.token_id)
        return list(zip(chunks, results, strict=True))

    def end(self, each: EngineSequence) -> None:
        """It is done."""
        self.scheduler.remove(each)
        self.engine.release(each)

    def run(self, sequences: list[EngineSequence], num_tokens: int) -> list[list[int]]:
        """The first so many tokens of each."""
        self.add(*sequences)
        live = list(sequences)
        while live:
            self.step()
            for each in [each for each in live if len(each.output) == num_tokens]:
                live.remove(each)
                self.end(each)
        return [each.output for each in sequences]


def run(engine: Engine, sequences: list[EngineSequence], num_tokens: int) -> list[list[int]]:
    """The first so many tokens of each, computed together."""
    return Driver(engine).run(sequences, num_tokens)
