"""What may be recorded: limits and grammar, each violation named by its field's path. Pure functions."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument, InvalidReference
from services.kit.names import ModelRef, parse_digest, parse_id
from services.registry.core.models import (
    Artifact,
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

MAX_FILES: Final = 100_000
MAX_ARTIFACTS: Final = 32
MAX_FINDINGS: Final = 100
MAX_LABELS: Final = 64
MAX_LABEL_CHARS: Final = 63
MAX_ALIASES: Final = 32
MAX_LANGUAGES: Final = 256
MAX_LANGUAGE_CHARS: Final = 35
MAX_LINE_CHARS: Final = 256
MAX_TEXT_CHARS: Final = 4096
MAX_PATH_CHARS: Final = 1024
MAX_PART_CHARS: Final = 255
MAX_VERSION_BYTES: Final = 2**48
MAX_COUNT: Final = 2**63 - 1
MAX_REQUEST_ID_CHARS: Final = 128
MAX_QUERY_CHARS: Final = 128

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")

MODEL_FIELDS: Final = frozenset(
    {
        "display_name",
        "description",
        "kind",
        "capabilities",
        "license",
        "architecture",
        "num_parameters",
        "context_length",
        "languages",
        "labels",
        "default_version",
        "aliases",
    }
)
"""What an update may change of a model."""

VERSION_FIELDS: Final = frozenset({"state", "state_reason", "quantization", "labels"})
"""What an update may change of a version."""


def check_model(model: Model, *, field: str = "model") -> Model:
    """The model as it is to be recorded, its lists in one order. Raises InvalidArgument."""
    if model.kind is ModelKind.UNSPECIFIED:
        raise InvalidArgument.at(f"{field}.kind", "must say what the model does")
    for name in ("display_name", "provider", "license", "architecture"):
        _check_text(getattr(model, name), f"{field}.{name}")
    _check_text(model.description, f"{field}.description", max_chars=MAX_TEXT_CHARS, lines=True)
    _check_text(model.source, f"{field}.source", max_chars=MAX_TEXT_CHARS)
    _check_count(model.num_parameters, f"{field}.num_parameters")
    _check_at_most(len(model.aliases), MAX_ALIASES, f"{field}.aliases")
    for index, alias in enumerate(model.aliases):
        parse_id(alias, field=f"{field}.aliases[{index}]")
        if alias == model.id:
            raise InvalidArgument.at(f"{field}.aliases[{index}]", "is the model's own id")
    _check_at_most(len(model.languages), MAX_LANGUAGES, f"{field}.languages")
    for index, language in enumerate(model.languages):
        if len(language) > MAX_LANGUAGE_CHARS or not _LANGUAGE.fullmatch(language):
            raise InvalidArgument.at(
                f"{field}.languages[{index}]", "must be a BCP 47 tag such as en or zh-Hant"
            )
    for index, capability in enumerate(model.capabilities):
        if not capability:
            raise InvalidArgument.at(
                f"{field}.capabilities[{index}]", "must be one of the named capabilities"
            )
    return replace(
        model,
        display_name=model.display_name or model.id,
        capabilities=tuple(sorted(set(model.capabilities))),
        languages=tuple(dict.fromkeys(model.languages)),
        aliases=tuple(sorted(set(model.aliases))),
        labels=check_labels(model.labels, field=f"{field}.labels"),
    )


def check_has_no_version(model: Model, *, field: str = "model") -> None:
    """For a model that is to be recorded. Raises InvalidArgument."""
    if model.default_version_id:
        raise InvalidArgument.at(
            f"{field}.default_version", "cannot be set yet: record the model, then its version"
        )


def check_version(version: Version, *, field: str = "version") -> Version:
    """The new version as it is to be recorded. Raises InvalidArgument, InvalidDigest."""
    if version.kind is VersionKind.UNSPECIFIED:
        raise InvalidArgument.at(f"{field}.kind", "must be weights or an adapter")
    if version.format is Format.UNSPECIFIED:
        raise InvalidArgument.at(f"{field}.format", "must say the format of the files")
    if version.state is VersionState.QUARANTINED or version.state_reason:
        raise InvalidArgument.at(f"{field}.state", "must be available: only what was verified is recorded")
    if version.kind is VersionKind.WEIGHTS and version.base_version_id:
        raise InvalidArgument.at(f"{field}.base_version", "is for adapters; full weights have no base")
    if version.kind is VersionKind.ADAPTER and not version.base_version_id:
        raise InvalidArgument.at(
            f"{field}.base_version", "must be the version that the adapter was trained on"
        )
    for name in ("revision", "quantization"):
        _check_text(getattr(version, name), f"{field}.{name}")
    _check_text(version.source, f"{field}.source", max_chars=MAX_TEXT_CHARS)
    check_files(version.files, field=f"{field}.files")
    _check_findings(version.findings, field=f"{field}.findings")
    return replace(
        version,
        state=VersionState.AVAILABLE,
        size_bytes=size_of(version.files),
        labels=check_labels(version.labels, field=f"{field}.labels"),
    )


def _check_findings(findings: Sequence[Finding], *, field: str) -> None:
    _check_at_most(len(findings), MAX_FINDINGS, field)
    for index, finding in enumerate(findings):
        if FindingKind.UNSPECIFIED is finding.kind or FindingSeverity.UNSPECIFIED is finding.severity:
            raise InvalidArgument.at(f"{field}[{index}]", "must have a kind and a severity")
        _check_text(finding.path, f"{field}[{index}].path", max_chars=MAX_PATH_CHARS)
        _check_text(finding.message, f"{field}[{index}].message")


def check_version_update(version: Version, *, field: str = "version") -> Version:
    """The changed version as it is to be recorded. Raises InvalidArgument."""
    if version.state is VersionState.UNSPECIFIED:
        raise InvalidArgument.at(f"{field}.state", "must be available or quarantined")
    if version.state is VersionState.AVAILABLE:
        version = replace(version, state_reason="")
    elif not version.state_reason:
        raise InvalidArgument.at(f"{field}.state_reason", "must say why the version is quarantined")
    _check_text(version.state_reason, f"{field}.state_reason", max_chars=MAX_TEXT_CHARS, lines=True)
    _check_text(version.quantization, f"{field}.quantization")
    return replace(version, labels=check_labels(version.labels, field=f"{field}.labels"))


def check_artifact(artifact: Artifact, *, field: str = "artifact") -> None:
    """Raises InvalidArgument, InvalidReference, InvalidDigest."""
    parse_id(artifact.id, field=f"{field}.artifact_id")
    if artifact.format is Format.UNSPECIFIED:
        raise InvalidArgument.at(f"{field}.format", "must say the format of the files")
    for name in ("quantization", "producer"):
        _check_text(getattr(artifact, name), f"{field}.{name}")
    check_files(artifact.files, field=f"{field}.files")
    if artifact.perplexity is not None:
        check_perplexity(artifact.perplexity, field=f"{field}.perplexity")


def check_perplexity(perplexity: Perplexity, *, field: str) -> None:
    """Raises InvalidArgument, InvalidDigest."""
    for name, value in (("value", perplexity.value), ("baseline", perplexity.baseline)):
        is_known = value >= 1 and math.isfinite(value)
        if not is_known and (name == "value" or value != 0):
            raise InvalidArgument.at(f"{field}.{name}", "must be a number from 1 on")
    if not perplexity.num_tokens:
        raise InvalidArgument.at(f"{field}.num_tokens", "must say how many tokens were scored")
    parse_digest(perplexity.text_digest, field=f"{field}.text_digest")


def check_files(files: Sequence[File], *, field: str) -> None:
    """Whether these can be one folder of files in the store. Raises InvalidArgument, InvalidDigest."""
    if not files:
        raise InvalidArgument.at(field, "must name at least one file")
    _check_at_most(len(files), MAX_FILES, field)
    sizes: dict[str, int] = {}
    for index, file in enumerate(files):
        check_path(file.path, field=f"{field}[{index}].path")
        parse_digest(file.digest, field=f"{field}[{index}].digest")
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            raise InvalidArgument.at(
                f"{field}[{index}].size_bytes", "differs from that of another file with this digest"
            )
    if sum(sizes.values()) > MAX_VERSION_BYTES:
        raise InvalidArgument.at(field, f"must have at most {MAX_VERSION_BYTES} bytes together")
    _check_paths_differ([file.path for file in files], field)


def size_of(files: Iterable[File]) -> int:
    """Bytes in the store: a digest counts once."""
    return sum({file.digest: file.size_bytes for file in files}.values())


def check_path(path: str, *, field: str) -> None:
    """A path that stays in its folder, on every system that it may be written to. Raises InvalidArgument."""
    if why := _path_fault(path):
        raise InvalidArgument.at(field, why)


def _path_fault(path: str) -> str | None:
    if not path or len(path) > MAX_PATH_CHARS:
        return f"must be 1 to {MAX_PATH_CHARS} characters"
    if _CONTROL.search(path) or "\\" in path:
        return "must hold neither control characters nor backslashes"
    if path.startswith("/") or _DRIVE.match(path):
        return "must be relative to the model's folder"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "must have no part that is empty, '.' or '..'"
        if len(part.encode()) > MAX_PART_CHARS:
            return f"must have no part longer than {MAX_PART_CHARS} bytes"
    return None


def _check_paths_differ(paths: Sequence[str], field: str) -> None:
    """No two may be one where case or composition of characters is not told apart, as on macOS."""
    seen: set[str] = set()
    keys = [unicodedata.normalize("NFC", path).casefold() for path in paths]
    for index, key in enumerate(keys):
        if key in seen:
            raise InvalidArgument.at(f"{field}[{index}].path", "is there already, whatever its case")
        seen.add(key)
    for index, key in enumerate(keys):
        if any(folder in seen for folder in _folders(key)):
            raise InvalidArgument.at(f"{field}[{index}].path", "lies under a path that is a file")


def _folders(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


def check_labels(labels: Mapping[str, str], *, field: str) -> dict[str, str]:
    """The labels, by key. Raises InvalidArgument."""
    _check_at_most(len(labels), MAX_LABELS, field)
    for key, value in labels.items():
        if not key:
            raise InvalidArgument.at(field, "must have no empty key")
        _check_text(key, f"{field} key", max_chars=MAX_LABEL_CHARS)
        _check_text(value, f"{field}[{key}]", max_chars=MAX_LABEL_CHARS)
    return dict(sorted(labels.items()))


def check_filter(models: ModelFilter) -> ModelFilter:
    """Raises InvalidArgument."""
    _check_text(models.query, "filter.query", max_chars=MAX_QUERY_CHARS)
    for name in ("kinds", "capabilities", "states"):
        if 0 in getattr(models, name):
            raise InvalidArgument.at(f"filter.{name}", "must be named values")
    for index, provider in enumerate(models.providers):
        _check_text(provider, f"filter.providers[{index}]")
    return models


def check_mask(fields: Iterable[str], allowed: frozenset[str]) -> None:
    """Raises InvalidArgument for a field that cannot be changed."""
    violations = [
        FieldViolation("update_mask", f"'{name}' cannot be changed") for name in fields if name not in allowed
    ]
    if violations:
        raise InvalidArgument(
            f"update_mask: {', '.join(each.description for each in violations)};"
            f" these can: {', '.join(sorted(allowed))}",
            violations=violations,
        )


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgument."""
    _check_text(request_id, "request_id", max_chars=MAX_REQUEST_ID_CHARS)


def fingerprint(asked: Model | Version) -> str:
    """What tells one request from another: a digest of all that it asks for.

    What was noticed of the files is no part of it: a pull that was killed, and goes on under other settings, may notice
    something else about the same files.
    """
    if isinstance(asked, Version):
        asked = replace(asked, findings=())
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def source_forms(source: str) -> tuple[str, ...]:
    """How a source may be asked for: in its one spelling, and without its revision. Empty if it is none."""
    try:
        ref = ModelRef.parse(source)
    except InvalidReference:
        return ()
    if ref.served is not None:
        return ()
    return tuple(dict.fromkeys((str(ref), str(replace(ref, revision=None)))))


def _check_text(text: str, field: str, *, max_chars: int = MAX_LINE_CHARS, lines: bool = False) -> None:
    if len(text) > max_chars:
        raise InvalidArgument.at(field, f"must be at most {max_chars} characters; it has {len(text)}")
    if (_CONTROL_BUT_LINES if lines else _CONTROL).search(text):
        raise InvalidArgument.at(field, "must not hold control characters")


def _check_count(value: int, field: str) -> None:
    if not 0 <= value <= MAX_COUNT:
        raise InvalidArgument.at(field, f"must be at most {MAX_COUNT}")


def _check_at_most(number: int, most: int, field: str) -> None:
    if number > most:
        raise InvalidArgument.at(field, f"must have at most {most} entries; it has {number}")
