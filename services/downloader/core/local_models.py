"""Models that other programs have on this machine: which there are, and what an import of each would be."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import PurePath
from typing import Final, Protocol

from services.downloader.core.catalog import Catalog, Plan, unpinned
from services.downloader.core.download import PullOptions
from services.downloader.core.ports import ModelRegistry
from services.downloader.core.sources import PullRequest, Resolved, Source
from services.kit.errors import InvalidArgument, LaresError, UnsupportedFormat
from services.kit.names import parse_version_name

MAX_FOLDERS: Final = 16
"""How many folders may be named in one question."""


class LocalPlace(IntEnum):
    """What a folder with models is. Numbers as in the contract."""

    UNSPECIFIED = 0
    HUGGING_FACE = 1
    OLLAMA = 2
    FOLDER = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that looks like a model. reference: empty where the folder itself cannot be looked into.

    problem: why it cannot be imported, where its place tells that already.
    """

    reference: str
    place: LocalPlace
    folder: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A candidate that was looked at. copy_bytes: those of size_bytes that cannot be shared. version: if it is here."""

    candidate: Candidate
    model_id: str = ""
    num_files: int = 0
    size_bytes: int = 0
    copy_bytes: int = 0
    version: str = ""


class LocalPlaces(Protocol):
    """The folders of this machine."""

    def candidates(self, folders: Sequence[str]) -> AsyncGenerator[Candidate, None]:
        """What looks like a model in these folders; in the usual ones if there are none. By names alone."""


class LocalModels:
    """See `find`. sources: for what is on this machine, by provider."""

    def __init__(
        self,
        places: LocalPlaces,
        sources: Mapping[str, Source],
        catalog: Catalog,
        registry: ModelRegistry,
    ) -> None:
        self._places = places
        self._sources = sources
        self._catalog = catalog
        self._registry = registry

    async def find(self, folders: Sequence[str]) -> AsyncGenerator[LocalModel, None]:
        """One after another. Raises InvalidArgument, Unavailable if the registry does not answer."""
        if len(folders) > MAX_FOLDERS:
            raise InvalidArgument.at("folders", f"must be at most {MAX_FOLDERS}")
        if not all(PurePath(folder).is_absolute() and "\0" not in folder for folder in folders):
            raise InvalidArgument.at("folders", "must be absolute paths")
        here: dict[str, str] = {}
        origins: dict[str, str] = {}
        async for version in self._registry.list_versions():
            if not version.is_quarantined and not version.is_adapter:
                here[version.source] = version.name
            origins.setdefault(parse_version_name(version.name)[0], unpinned(version.source))
        async with aclosing(self._places.candidates(folders)) as candidates:
            async for candidate in candidates:
                yield await self._look_at(candidate, here, origins)

    async def _look_at(
        self, candidate: Candidate, here: Mapping[str, str], origins: dict[str, str]
    ) -> LocalModel:
        try:
            if candidate.problem or not candidate.folder.isprintable():
                raise UnsupportedFormat(candidate.problem or "the name of its folder cannot be sent")
            plan = self._catalog.plan(candidate.reference)
            resolved = await self._resolve(plan, candidate)
        except LaresError as error:
            return LocalModel(
                Candidate(
                    _shown(candidate.reference),
                    candidate.place,
                    _shown(candidate.folder),
                    _shown(error.message),
                )
            )
        version = here.get(resolved.source, "")
        return LocalModel(
            replace(candidate, reference=resolved.source),
            parse_version_name(version)[0]
            if version
            else _free_id(plan.model_id, unpinned(resolved.source), origins),
            num_files=len(resolved.files),
            size_bytes=sum(file.size_bytes or 0 for file in resolved.files),
            copy_bytes=sum(file.size_bytes or 0 for file in resolved.files if not file.is_shared),
            version=version,
        )

    async def _resolve(self, plan: Plan, candidate: Candidate) -> Resolved:
        options = PullOptions(local_folder=candidate.folder)
        return await self._sources[plan.refs[0].provider].resolve(
            PullRequest(plan.refs, plan.layout, options)
        )


def _free_id(model_id: str, origin: str, origins: dict[str, str]) -> str:
    """That id, or with a number behind it if another model has it. origins: id -> of the model that has it."""
    free, number = model_id, 2
    while origins.setdefault(free, origin) != origin:
        free, number = f"{model_id[:120]}-{number}", number + 1
    return free


def _shown(text: str) -> str:
    """Safe to send and to print: a file's name may be any bytes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
