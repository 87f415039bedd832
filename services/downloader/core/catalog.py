"""The catalogue: short names for models that are known to install and to work."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from services.downloader.core.ids import as_id
from services.downloader.core.models import Capability, ModelKind
from services.downloader.core.trust import TrustedSources
from services.kit.errors import FieldViolation, InvalidReference, SourceNotFound
from services.kit.names import ModelRef, parse_id


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model lies in what its source delivers.

    folder: glob of the folder inside the packages, such as `*/model`; empty: the one that holds weights.
    """

    folder: str = ""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One short name. sources: in the order in which their parts are joined.

    generation: how to sample unless a request says, in the words of generation_config.json, for a package
    that lacks that file.
    """

    model_id: str
    sources: tuple[ModelRef, ...]
    kind: ModelKind
    capabilities: tuple[Capability, ...]
    description: str
    license: str
    download_bytes: int
    languages: tuple[str, ...]
    layout: Layout
    generation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a caller's words mean. source: as it is shown; entry: None if it came by reference."""

    source: str
    refs: tuple[ModelRef, ...]
    model_id: str
    entry: CatalogEntry | None

    @property
    def layout(self) -> Layout:
        """Where the model lies in what its source delivers."""
        return self.entry.layout if self.entry else Layout()


class Catalog:
    """All entries, in the order of their names. trusted: what else may be pulled."""

    def __init__(self, entries: Iterable[CatalogEntry], trusted: TrustedSources | None = None) -> None:
        self._trusted = trusted or TrustedSources()
        self._entries = {entry.model_id: entry for entry in sorted(entries, key=lambda each: each.model_id)}

    @classmethod
    def parse(cls, text: str, trusted: TrustedSources | None = None) -> "Catalog":
        """From TOML: one table a model. It is ours, so a mistake in it is a bug: KeyError, ValueError."""
        entries = (_entry(model_id, table) for model_id, table in tomllib.loads(text).items())
        return cls(entries, trusted)

    def page(self, *, after_id: str, limit: int) -> Sequence[CatalogEntry]:
        """Entries in the order of their names, from the first after `after_id`."""
        return [entry for model_id, entry in self._entries.items() if model_id > after_id][:limit]

    def plan(self, source: str, *, model_id: str = "") -> Plan:
        """What to pull for a source, and what it is to be called.

        Asked again before a download goes on. Raises InvalidReference, SourceNotFound, PermissionDenied.
        """
        ref = ModelRef.parse(source, field="source")
        if model_id:
            parse_id(model_id, field="model_id")
        if ref.served is None:
            self._trusted.check(ref)
            return Plan(str(ref), (ref,), model_id or _model_id_of(ref), None)
        entry = self._entries.get(ref.served.model_id)
        if entry is None or ref.served.version_id is not None:
            raise self._unknown(source)
        return Plan(entry.model_id, entry.sources, model_id or entry.model_id, entry)

    def source_of(self, model_id: str, reference: str) -> str:
        """What to pull for a model that came from a reference: its short name, which also knows its other packages."""
        entry = self._entries.get(model_id)
        return model_id if entry is not None and str(entry.sources[0]) == reference else reference

    def entry_of(self, model_id: str, reference: str) -> CatalogEntry | None:
        """The entry that a model came from, in this revision or in another."""
        entry = self._entries.get(model_id)
        is_its = entry is not None and unpinned(str(entry.sources[0])) == unpinned(reference)
        return entry if is_its else None

    def _unknown(self, source: str) -> SourceNotFound:
        near = difflib.get_close_matches(source, self._entries, n=1, cutoff=0.5)
        hint = f" did you mean {near[0]}?" if near else ""
        return SourceNotFound(
            f"'{source[:80]}' is not in the catalogue, which has {', '.join(self._entries)};{hint}"
            " anything else is pulled by reference, such as pypi:NAME, hf:ORG/REPO@COMMIT,"
            " ollama:MODEL:TAG, vosk:LANGUAGE, https://HOST/FILE or file:/PATH",
            violations=[FieldViolation("source", "is not in the catalogue")],
            metadata={"source": source},
        )


def unpinned(source: str) -> str:
    """A reference without its revision; what is none, such as a job's name, stands for itself."""
    try:
        return str(replace(ModelRef.parse(source), revision=None))
    except InvalidReference:
        return source


def _entry(model_id: str, table: dict[str, Any]) -> CatalogEntry:
    return CatalogEntry(
        model_id=parse_id(model_id),
        sources=tuple(ModelRef.parse(source) for source in table["sources"]),
        kind=ModelKind[table["kind"].upper()],
        capabilities=tuple(Capability[name.upper()] for name in table.get("capabilities", [])),
        description=table["description"],
        license=table["license"],
        download_bytes=table["download_bytes"],
        languages=tuple(table.get("languages", [])),
        layout=Layout(folder=table.get("folder", "")),
        generation=table.get("generation", {}),
    )


def _model_id_of(ref: ModelRef) -> str:
    """An id made from a reference: of a path or a repository its last part."""
    last = ref.name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    if ref.provider in ("https", "http"):
        last = unquote(last)
    for suffix in (".gguf", ".safetensors", ".zip"):
        last = last.removesuffix(suffix)
    made = as_id(last if ref.tag is None else f"{last}-{ref.tag}")
    try:
        return parse_id(made)
    except InvalidReference as error:
        why = "no id can be made from the source; say which the model is to have"
        raise InvalidReference(f"model_id: {why}", violations=[FieldViolation("model_id", why)]) from error
