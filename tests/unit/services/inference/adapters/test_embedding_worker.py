"""The worker of an encoder over pipes of this process: what comes in between two batches, and what goes out."""

from collections.abc import Iterable

from services.inference.adapters.embedding_worker import EmbeddingWorker
from services.inference.adapters.messages import Embed, Embedded, EmbedInput, Rerank, Reranked
from services.kit.errors import InvalidArgument, LaresError
from services.kit.worker_port import Incoming
from tests.contract.fake_encoder import FakeEncoder

Request = Embed | Rerank


class ScriptedPort:
    """Hands out one list of what came in after another, one between two batches, and closes after the last."""

    def __init__(self, *arrivals: list[Incoming[Request]]) -> None:
        self._arrivals = list(arrivals)
        self.answers: dict[int, Embedded | Reranked] = {}
        self.order: list[int] = []
        self.errors: dict[int, LaresError] = {}

    @property
    def closed(self) -> bool:
        return not self._arrivals

    def receive(self, timeout_s: float | None = None) -> list[Incoming[Request]]:
        return self._arrivals.pop(0)

    def post(self, events: Iterable[tuple[int, Embedded | Reranked]], finished: Iterable[int]) -> None:
        self.answers.update(events)
        self.order.extend(finished)

    def fail(self, call_id: int, error: LaresError) -> None:
        self.errors[call_id] = error


def embed(call_id: int, *texts: str) -> Incoming[Request]:
    return Incoming(call_id, "open", Embed(tuple(EmbedInput(text) for text in texts)))


def cancel(call_id: int) -> Incoming[Request]:
    return Incoming(call_id, "cancel")


def run(*arrivals: list[Incoming[Request]]) -> tuple[ScriptedPort, FakeEncoder]:
    port, encoder = ScriptedPort(*arrivals), FakeEncoder()
    EmbeddingWorker(encoder, port, max_tokens=16).run()  # type: ignore[arg-type]  # What it calls is there.
    return port, encoder


def test_requests_that_wait_together_share_batches():
    port, encoder = run([embed(1, "abcd", "efgh"), embed(2, "ijkl", "mnop")])
    assert [len(batch) for batch in encoder.batches] == [4]
    assert port.order == [1, 2]
    assert port.answers[1] != port.answers[2]


def test_an_answer_is_posted_as_its_request_completes():
    many = [f"{letter}" * 8 for letter in "abcdefghij"]
    port, encoder = run([embed(1, *many)], [embed(2, "x")], *[[] for _ in range(6)])
    assert port.order == [2, 1]
    assert sum(len(batch) for batch in encoder.batches) == 11


def test_what_is_cancelled_is_not_computed_any_further():
    many = ["a" * 16] * 50
    port, encoder = run([embed(1, *many), embed(2, "b" * 16)], [cancel(1)], [], [])
    assert len([text for batch in encoder.batches for text in batch if text.startswith("a")]) == 1
    assert port.order == [2]


def test_a_request_that_cannot_be_computed_fails_alone():
    port, _ = run([embed(1, "ok"), embed(2, "fine", "x" * 99), embed(3, "good")])
    assert port.order == [1, 3]
    assert isinstance(port.errors[2], InvalidArgument)
    assert port.errors[2].violations[0].field == "inputs[1]"


def test_answers_do_not_depend_on_the_company():
    alone, _ = run([embed(1, "abc", "d")])
    together, _ = run([embed(2, "z" * 9, "y"), embed(1, "abc", "d"), cancel(7)], [], [])
    assert together.answers[1] == alone.answers[1]


def test_documents_are_scored_in_order():
    port, _ = run([Incoming(1, "open", Rerank("b", ("z", "b", "c")))])
    answer = port.answers[1]
    assert isinstance(answer, Reranked)
    assert answer.scores[1] > answer.scores[2] > answer.scores[0]
