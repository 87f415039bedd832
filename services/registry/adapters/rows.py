"""Row <-> domain, in pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from services.registry.core.models import (
    Artifact,
    Capability,
    Event,
    File,
    Finding,
    FindingKind,
    FindingSeverity,
    Model,
    Perplexity,
    Version,
)

Row = dict[str, Any]


def model_to_row(model: Model) -> Row:
    """The row of `models`; aliases and capabilities have their own."""
    row = _fields(model, without=("aliases", "capabilities"))
    return row | {
        "search_text": model.search_text,
        "languages": list(model.languages),
        "labels": dict(model.labels),
    }


def model_from_row(row: RowMapping, aliases: Iterable[str], capabilities: Iterable[Capability]) -> Model:
    """The other way."""
    values = {name: value for name, value in row.items() if name != "search_text"}
    values["languages"] = tuple(values["languages"])
    return Model(**values, aliases=tuple(sorted(aliases)), capabilities=tuple(sorted(capabilities)))


def version_to_row(version: Version) -> Row:
    """The row of `versions`; files and artifacts have their own."""
    row = _fields(version, without=("files", "artifacts"))
    num_files = len(version.files) + sum(len(artifact.files) for artifact in version.artifacts)
    return row | {
        "findings": [_finding_to_row(finding) for finding in version.findings],
        "labels": dict(version.labels),
        "num_files": num_files,
    }


def version_from_row(
    row: RowMapping, files: Iterable[File] = (), artifacts: Iterable[Artifact] = ()
) -> Version:
    """The other way."""
    values = {name: value for name, value in row.items() if name != "num_files"}
    values["findings"] = tuple(_finding_from_row(finding) for finding in values["findings"])
    return Version(**values, files=tuple(files), artifacts=tuple(artifacts))


def _finding_to_row(finding: Finding) -> Row:
    """Enums by name, as in the columns of the tables."""
    return asdict(finding) | {"kind": finding.kind.name, "severity": finding.severity.name}


def _finding_from_row(row: Row) -> Finding:
    kind, severity = FindingKind[row["kind"]], FindingSeverity[row["severity"]]
    return Finding(kind, severity, row["path"], row["message"])


def artifact_to_row(version: Version, artifact: Artifact) -> Row:
    """The row of `artifacts`."""
    row = _fields(artifact, without=("files", "perplexity"))
    measured = None if artifact.perplexity is None else asdict(artifact.perplexity)
    return row | {"model_id": version.model_id, "version_id": version.id, "perplexity": measured}


def artifact_from_row(row: RowMapping, files: Iterable[File]) -> Artifact:
    """The other way."""
    values = {name: value for name, value in row.items() if name not in ("model_id", "version_id")}
    measured = values.pop("perplexity")
    perplexity = None if measured is None else Perplexity(**measured)
    return Artifact(**values, files=tuple(files), perplexity=perplexity)


def files_to_rows(version: Version, artifact_id: str, files: Sequence[File]) -> list[Row]:
    """Rows of `files`. artifact_id: empty for those of the version itself."""
    owner = {"model_id": version.model_id, "version_id": version.id, "artifact_id": artifact_id}
    return [owner | asdict(file) | {"position": position} for position, file in enumerate(files)]


def event_to_row(event: Event) -> Row:
    """The row of `events`."""
    return _fields(event, without=()) | {"model": msgspec.json.encode(event.model)}


def event_from_row(row: RowMapping) -> Event:
    """The other way."""
    return Event(row["sequence"], row["change"], msgspec.json.decode(row["model"], type=Model), row["time"])


def hash_of(reference: str) -> str:
    """The key of a reference in `sources`."""
    return sha256(reference.encode()).hexdigest()


def _fields(record: Model | Version | Artifact | Event, *, without: Sequence[str]) -> Row:
    """A record's fields as they are. Not `asdict`, which would copy a hundred thousand files to drop them."""
    names = (field.name for field in fields(record))
    return {name: getattr(record, name) for name in names if name not in without}
