import pytest

from services.downloader.core.selection import (
    Piece,
    hub_files,
    left_out,
    model_files,
    pieces_of,
    quantization_of,
)
from services.kit.errors import UnsupportedFormat


def test_a_gguf_in_a_package_is_taken_alone() -> None:
    members = ["pkg/__init__.py", "pkg/m.gguf", "pkg/LICENSE", "pkg-1.dist-info/RECORD"]
    assert pieces_of([members], "") == [Piece(0, "pkg/m.gguf", "m.gguf")]


def test_the_folder_with_the_weights_is_found_and_its_code_left_out() -> None:
    members = [
        "pkg/code.py",
        "pkg/model/config.json",
        "pkg/model/model.safetensors",
        "pkg/model/x.py",
        "other/a.txt",
    ]
    assert [piece.path for piece in pieces_of([members], "")] == ["config.json", "model.safetensors"]


def test_a_vosk_model_is_found_above_its_acoustic_model() -> None:
    members = ["p/model/am/final.mdl", "p/model/graph/HCLr.fst", "p/__init__.py"]
    assert [piece.path for piece in pieces_of([members], "")] == ["am/final.mdl", "graph/HCLr.fst"]


def test_parts_over_several_packages_are_joined_in_the_order_of_their_numbers() -> None:
    archives = [
        ["b/data/model.bin.part2", "b/data/vocabulary.json", "b/data/tokenizer.json", "b/data/config.json"],
        ["a/data/model.bin.part1"],
    ]
    pieces = [piece for piece in pieces_of(archives, "*/data") if piece.path == "model.bin"]
    assert [piece.archive for piece in pieces] == [1, 0]


def test_ten_parts_are_ordered_by_number_not_by_letter() -> None:
    members = [f"p/m.gguf.part{number}" for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    assert [piece.member for piece in pieces_of([members], "")] == list(reversed(members))


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3), (1, 1), (0, 2)])
def test_a_missing_or_doubled_part_is_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedFormat, match="part of it"):
        pieces_of([[f"a{i}/m.gguf.part{number}" for i, number in enumerate(numbers)]], "a*")


@pytest.mark.parametrize("members", [[], ["a/x.txt"], ["a/pytorch_model.bin", "a/config.json"]])
def test_a_package_without_weights_is_refused(members: list[str]) -> None:
    with pytest.raises(UnsupportedFormat):
        pieces_of([members], "")


def test_pickles_are_left_out_of_a_folder_and_named_if_there_is_nothing_else() -> None:
    assert model_files(["config.json", "model.safetensors", "pytorch_model.bin", "x.pt"]) == [
        "config.json",
        "model.safetensors",
    ]
    assert model_files(["pytorch_model.bin", "config.json"]) == []
    with pytest.raises(UnsupportedFormat, match=r"pytorch_model\.bin"):
        hub_files(["pytorch_model.bin", "config.json"], None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m-Q4_K_M.gguf", "Q4_K_M"),
        ("m.q8_0.gguf", "Q8_0"),
        ("sub/m-IQ3_XS-00001-of-00002.gguf", "IQ3_XS"),
        ("m-BF16.gguf", "BF16"),
        ("m.gguf", ""),
    ],
)
def test_the_quantization_is_read_from_the_name(name: str, expected: str) -> None:
    assert quantization_of(name) == expected


GGUFS = [
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m-F16-00001-of-00002.gguf",
    "m-F16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
]


def test_a_tag_chooses_among_the_quantizations_of_a_hub() -> None:
    assert hub_files(GGUFS, "q8_0") == ["m-Q8_0.gguf"]
    assert hub_files(GGUFS, "F16") == ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]
    assert hub_files(GGUFS, None) == ["m-Q4_K_M.gguf"]
    with pytest.raises(UnsupportedFormat, match="F16, Q4_K_M, Q8_0"):
        hub_files(GGUFS, "Q2_K")


def test_safetensors_of_a_hub_come_once_and_from_the_top() -> None:
    names = [
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "onnx/config.json",
    ]
    names += ["1_Pooling/config.json", "model.gguf", "pytorch_model.bin", "tokenizer.model", "train.py"]
    assert hub_files(names, None) == [
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
        "tokenizer.model",
    ]


def test_a_signature_comes_along() -> None:
    assert model_files(["m.gguf", "x.txt", "model.sig"]) == ["m.gguf", "model.sig"]
    assert "model.sig" in model_files(["model.safetensors", "config.json", "model.sig"])
    assert hub_files(["m.gguf", "model.sig", "sub/model.sig"], None) == ["m.gguf", "model.sig"]
    assert hub_files(["model.safetensors", "model.sig"], None) == ["model.safetensors", "model.sig"]


def test_what_may_run_code_is_left_out_by_name_but_for_the_weights_of_ctranslate2() -> None:
    paths = ["a/m.PKL", "model.safetensors", "pytorch_model.bin", "w/model.bin", "w/vocabulary.txt", "x.npz"]
    assert left_out(paths) == ["a/m.PKL", "pytorch_model.bin", "x.npz"]
    assert left_out(["model.bin"]) == ["model.bin"]
    assert model_files(["model.safetensors", "w/model.bin", "w/vocabulary.txt"]) == [
        "model.safetensors",
        "w/vocabulary.txt",
    ]
