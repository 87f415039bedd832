import pytest

from bench.report import Results, markdown, number, table
from bench.scenarios import BARS, OF_A_SERVER, OF_LARES, QUICK, SCENARIOS, Bar


@pytest.fixture
def results() -> Results:
    made = Results("starter", SCENARIOS, {"cores": "2"})
    for peer in ("lares", "vllm"):
        made.versions[peer] = "1.0"
        made.weights[peer] = "bf16"
    return made


def test_a_ratio_is_the_median_of_the_rounds_ratios(results: Results) -> None:
    for round_, (ours, theirs) in enumerate([(30, 10), (10, 10), (40, 20)]):
        results.add("lares", "c16", round_, ours)
        results.add("vllm", "c16", round_, theirs)
    assert results.ratio("c16", "vllm") == 2
    assert results.median("lares", "c16") == 30


def test_only_rounds_that_both_finished_count_for_a_ratio(results: Results) -> None:
    results.add("lares", "c16", 0, 30)
    results.add("lares", "c16", 1, 8)
    results.add("vllm", "c16", 1, 4)
    assert results.ratio("c16", "vllm") == 2


def test_without_a_common_round_there_is_no_ratio(results: Results) -> None:
    results.add("lares", "c16", 0, 30)
    results.add("vllm", "c16", 1, 4)
    assert results.ratio("c16", "vllm") is None
    assert results.ratio("c16", "nobody") is None


def test_a_report_shows_the_ratio_beside_the_peers_value(results: Results) -> None:
    results.add("lares", "c16", 0, 300)
    results.add("vllm", "c16", 0, 400)
    assert "| 16 clients, tok/s | 300 | 400 (0.75x) |" in markdown(results)
    assert "| 16 clients | vllm | 0.75x | 0.75 | met |" in markdown(results)


def test_a_bar_that_is_missed_is_told(results: Results) -> None:
    results.add("lares", "ttft512", 0, 250)
    results.add("vllm", "ttft512", 0, 200)
    assert "| first token of 512 | vllm | at most 1.2x | 1.25 | **not met** |" in markdown(results)


def test_a_bar_of_another_model_is_left_out(results: Results) -> None:
    results.add("lares", "first_answer_s", 0, 3)
    assert "| ready to first token ever | - | at most 5 |" in markdown(results)
    results.model = "1b"
    assert "| ready to first token ever | - | at most 5 |" not in markdown(results)


def test_what_was_not_measured_is_told_and_has_no_line(results: Results) -> None:
    results.add("lares", "c4", 0, 1)
    results.left_out["vllm"] = "it did not start"
    text = markdown(results)
    assert "- left out: vllm: it did not start" in text
    assert "32 clients" not in text


def test_a_number_has_three_digits() -> None:
    assert [number(value) for value in (0.0312, 7.456, 99.94, 1234.5, None)] == [
        "0.0312",
        "7.46",
        "99.9",
        "1,234",
        "-",
    ]


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: f"{bar.measure}-{bar.peer}")
def test_a_bar_is_about_something_that_is_measured(bar: Bar) -> None:
    assert bar.measure in {one.name for one in SCENARIOS} | OF_A_SERVER.keys() | OF_LARES.keys()


def test_the_quick_run_is_a_part_of_the_whole() -> None:
    whole = {one.name: one.metric for one in SCENARIOS}
    assert all(whole[one.name] == one.metric for one in QUICK)
