"""What of the card's benchmark a machine without a card can run."""

from pathlib import Path

import pytest
import torch

from bench import gpu


def test_without_a_card_it_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert "no CUDA card" in capsys.readouterr().err


def test_answers_are_those_of_transformers(tmp_path: Path):
    folder = gpu.saved_llama(tmp_path / "tiny", gpu._TINY | {"dtype": "bfloat16"})
    prompts = gpu.prompts_for(3, vocab_size=512)
    runner = gpu.engine(folder, "cpu", torch.bfloat16, cuda_graphs=True, num_sequences=3)
    answers, step_s = gpu.generate(runner, prompts, 4)
    assert [len(answer) for answer in answers] == [4, 4, 4]
    assert step_s > 0
    first = [answer[0] for answer in gpu.Peer(folder, "cpu").answers(prompts, 4)]
    assert [answer[0] for answer in answers] == first


def test_the_tiny_model_picks_the_same_tokens_again(tmp_path: Path):
    assert gpu.same_tokens(gpu.saved_llama(tmp_path / "tiny", gpu._TINY), "cpu")


def test_what_is_measured_on_a_card_can_be_measured_anywhere(tmp_path: Path):
    folder = gpu.saved_llama(tmp_path / "tiny", gpu._TINY | {"dtype": "bfloat16"})
    rows = list(gpu.measure(folder, "cpu", [2], 1e12))
    assert [row.way for row in rows] == ["graphs on", "graphs off", "transformers"]
    assert all(row.tokens_per_s > 0 for row in rows)
    assert "of 512 tokens the same" in gpu.agreement(folder, "cpu")


def test_the_table_leaves_out_what_a_peer_has_not():
    rows = [
        gpu.Measured(16, "graphs on", 1234.5, 0.42, 3.21),
        gpu.Measured(16, "transformers", 384.0, None, None),
    ]
    assert gpu.table(rows).splitlines()[2:] == [
        "| 16 | graphs on | 1,234 | 42% | 3.2 |",
        "| 16 | transformers | 384 |  |  |",
    ]
