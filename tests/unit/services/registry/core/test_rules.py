import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument, InvalidDigest, InvalidReference
from services.registry.core import rules
from services.registry.core.models import (
    Artifact,
    Capability,
    File,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Model,
    ModelFilter,
    ModelKind,
    Perplexity,
    Version,
    VersionKind,
    VersionState,
)

DIGEST = f"sha256:{'0' * 64}"
MODEL = Model(id="m", kind=ModelKind.EMBEDDING)
VERSION = Version("m", "v", VersionKind.WEIGHTS, format=Format.ONNX, files=(File("a", 1, DIGEST),))

PATHS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["..", ".", "", "a", "B", "C:", "\\", "\0", "é", "a b"])).map("/".join),
)


@given(PATHS)
def test_an_accepted_path_stays_in_its_folder_everywhere(path: str) -> None:
    try:
        rules.check_path(path, field="path")
    except InvalidArgument:
        return
    for flavour in (PurePosixPath, PureWindowsPath):
        pure = flavour(path)
        assert not pure.is_absolute()
        assert not pure.drive
        assert ".." not in pure.parts
        assert str(pure) != "."
    assert str(PurePosixPath(path)) == path
    assert "\0" not in path


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z]{1,5})?", fullmatch=True), min_size=1, max_size=5))
def test_plain_paths_are_accepted(parts: list[str]) -> None:
    rules.check_path("/".join(parts), field="path")


@given(st.text(min_size=1), st.sampled_from([str, str.upper, str.lower, str.swapcase]))
def test_two_paths_that_one_disk_may_take_for_the_same_are_refused(
    path: str, spell: Callable[[str], str]
) -> None:
    assume(spell(path).casefold() == path.casefold())
    files = [File(path, 1, DIGEST), File(spell(path), 1, DIGEST)]
    with pytest.raises(InvalidArgument):
        rules.check_files(files, field="files")


@pytest.mark.parametrize(
    ("paths", "field"),
    [
        (["a", "A"], "files[1].path"),
        (["é", "e\u0301"], "files[1].path"),
        (["a/b", "a"], "files[0].path"),
        (["x/A", "X/a"], "files[1].path"),
        (["ok", "../up"], "files[1].path"),
    ],
)
def test_the_violation_names_the_file(paths: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rules.check_files([File(path, 1, DIGEST) for path in paths], field="files")
    assert caught.value.violations[0].field == field


def test_files_have_limits() -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        rules.check_files([], field="files")
    one = File("a", 1, DIGEST)
    with pytest.raises(InvalidArgument, match="100000"):
        rules.check_files([one] * (rules.MAX_FILES + 1), field="files")
    with pytest.raises(InvalidArgument, match="bytes together"):
        rules.check_files([replace(one, size_bytes=2**63)], field="files")
    with pytest.raises(InvalidArgument, match="differs"):
        rules.check_files([one, File("b", 2, DIGEST)], field="files")
    with pytest.raises(InvalidDigest) as caught:
        rules.check_files([File("a", 1, "sha256:../../etc/passwd")], field="files")
    assert caught.value.violations[0].field == "files[0].digest"


def test_a_hundred_thousand_files_are_accepted() -> None:
    files = [File(f"part/{index}.bin", 1, DIGEST) for index in range(rules.MAX_FILES)]
    rules.check_files(files, field="files")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": ModelKind.UNSPECIFIED}, "model.kind"),
        ({"display_name": "x" * 257}, "model.display_name"),
        ({"display_name": "a\nb"}, "model.display_name"),
        ({"description": "a\0b"}, "model.description"),
        ({"description": "x" * 4097}, "model.description"),
        ({"source": "x" * 4097}, "model.source"),
        ({"num_parameters": 2**63}, "model.num_parameters"),
        ({"aliases": ("ok", "Not Ok")}, "model.aliases[1]"),
        ({"aliases": tuple(f"a{n}" for n in range(33))}, "model.aliases"),
        ({"languages": ("en", "not a tag")}, "model.languages[1]"),
        ({"capabilities": (Capability.UNSPECIFIED,)}, "model.capabilities[0]"),
        ({"labels": {"k" * 64: "v"}}, "model.labels key"),
        ({"labels": {"k": "v" * 64}}, "model.labels[k]"),
        ({"labels": {"": "v"}}, "model.labels"),
        ({"labels": {str(n): "" for n in range(65)}}, "model.labels"),
    ],
)
def test_a_models_limits_are_named_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises((InvalidArgument, InvalidReference)) as caught:
        rules.check_model(replace(MODEL, **change))  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field


def test_lists_of_a_model_have_one_order() -> None:
    model = replace(
        MODEL,
        aliases=("b", "a", "b"),
        capabilities=(Capability.TOOLS, Capability.CHAT, Capability.CHAT),
        languages=("vi", "en", "vi"),
    )
    checked = rules.check_model(model)
    assert checked.aliases == ("a", "b")
    assert checked.capabilities == (Capability.CHAT, Capability.TOOLS)
    assert checked.languages == ("vi", "en")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": VersionKind.UNSPECIFIED}, "version.kind"),
        ({"format": Format.UNSPECIFIED}, "version.format"),
        ({"state": VersionState.QUARANTINED}, "version.state"),
        ({"revision": "x" * 257}, "version.revision"),
        ({"files": ()}, "version.files"),
    ],
)
def test_a_versions_limits_are_named_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rules.check_version(replace(VERSION, **change))  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field


def test_an_artifact_needs_an_id_a_format_and_files() -> None:
    artifact = Artifact("safetensors", Format.SAFETENSORS, files=VERSION.files)
    rules.check_artifact(artifact)
    measured = Perplexity(25.5, 0.0, DIGEST, 2048)
    rules.check_artifact(replace(artifact, perplexity=measured))
    for wrong in (
        replace(artifact, perplexity=replace(measured, value=0.5)),
        replace(artifact, perplexity=replace(measured, value=math.inf)),
        replace(artifact, perplexity=replace(measured, baseline=math.nan)),
        replace(artifact, perplexity=replace(measured, num_tokens=0)),
        replace(artifact, perplexity=replace(measured, text_digest="")),
        replace(artifact, id="Not ok"),
        replace(artifact, format=Format(0)),
        replace(artifact, files=()),
    ):
        with pytest.raises(InvalidArgument):
            rules.check_artifact(wrong)


def test_a_filter_takes_named_values_only() -> None:
    with pytest.raises(InvalidArgument):
        rules.check_filter(ModelFilter(kinds=(ModelKind.UNSPECIFIED,)))
    with pytest.raises(InvalidArgument):
        rules.check_filter(ModelFilter(query="x" * 129))


@pytest.mark.parametrize(
    ("source", "forms"),
    [
        ("pypi:LLM_x==1.0", ("pypi:llm-x==1.0", "pypi:llm-x")),
        ("hf:org/repo@abc", ("hf:org/repo@abc", "hf:org/repo")),
        ("ollama:gemma2:9b", ("ollama:gemma2:9b",)),
        ("file:/models/x@1.gguf", ("file:/models/x@1.gguf",)),
        ("jobs/j1", ()),
        ("smollm2", ()),
        ("", ()),
    ],
)
def test_a_source_may_be_asked_for_as(source: str, forms: tuple[str, ...]) -> None:
    assert rules.source_forms(source) == forms


@given(st.text())
def test_any_text_may_be_a_source_form_or_none(text: str) -> None:
    assert len(rules.source_forms(text)) <= 2


FINDING = Finding(FindingKind.PICKLE, FindingSeverity.DANGER, "m.pkl", "it imports os.system")


def test_findings_are_recorded_as_they_are() -> None:
    assert rules.check_version(replace(VERSION, findings=(FINDING,))).findings == (FINDING,)


@pytest.mark.parametrize(
    "findings",
    [
        (replace(FINDING, kind=FindingKind.UNSPECIFIED),),
        (replace(FINDING, severity=FindingSeverity.UNSPECIFIED),),
        (replace(FINDING, message="\x1b[2J"),),
        (replace(FINDING, message="m" * 257),),
        (replace(FINDING, path="p\n"),),
        (FINDING,) * 101,
    ],
)
def test_findings_that_cannot_be_shown_are_refused(findings: tuple[Finding, ...]) -> None:
    with pytest.raises(InvalidArgument, match="findings"):
        rules.check_version(replace(VERSION, findings=findings))
