"""A `ModelStore` in memory: what the core's unit tests run on. It passes the same suite as the real ones."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TypeVar

from services.registry.core.models import (
    Artifact,
    Event,
    Model,
    ModelFilter,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.ports import MAX_PAGE_FILES, Page, Records, RequestRecord
from services.registry.core.rules import source_forms

T = TypeVar("T")


class MemoryRecords:
    """`Records` in dictionaries."""

    def __init__(self, kept_events: int) -> None:
        self._kept_events = kept_events
        self._last = 0
        self._models: dict[str, Model] = {}
        self._versions: dict[tuple[str, str], Version] = {}
        self._events: list[Event] = []
        self._requests: dict[str, RequestRecord] = {}

    def snapshot(self) -> "MemoryRecords":
        """The records as they are now; all that is in them is immutable."""
        twin = copy(self)
        twin._models, twin._versions = dict(self._models), dict(self._versions)
        twin._events, twin._requests = list(self._events), dict(self._requests)
        return twin

    def next_sequence(self) -> int:
        self._last += 1
        return self._last

    def last_sequence(self) -> int:
        return self._last

    def model(self, model_id: str) -> Model | None:
        return self._models.get(model_id)

    def holder_of(self, name: str) -> str | None:
        return next((m.id for m in self._models.values() if name == m.id or name in m.aliases), None)

    def models(self, models: ModelFilter, *, after_id: str, limit: int) -> Page[Model]:
        found = [model for id, model in sorted(self._models.items()) if id > after_id and models.takes(model)]
        return Page(found[:limit], more=len(found) > limit)

    def save_model(self, model: Model) -> None:
        self._models[model.id] = model

    def delete_model(self, model_id: str) -> None:
        del self._models[model_id]
        for key in [key for key in self._versions if key[0] == model_id]:
            del self._versions[key]

    def model_size_bytes(self, model_id: str) -> int:
        sizes = {}
        for version in self._of(model_id):
            for files in (version.files, *(artifact.files for artifact in version.artifacts)):
                sizes.update({file.digest: file.size_bytes for file in files})
        return sum(sizes.values())

    def version(self, model_id: str, version_id: str) -> Version | None:
        return self._versions.get((model_id, version_id))

    def version_header(self, model_id: str, version_id: str) -> Version | None:
        version = self.version(model_id, version_id)
        return version and replace(version, files=(), artifacts=())

    def versions(self, model_id: str | None, *, after_serial: int, limit: int) -> Page[Version]:
        found = [v for v in self._newest_last() if v.serial > after_serial and model_id in (None, v.model_id)]
        fitting: list[Version] = []
        num_files = 0
        for version in found[:limit]:
            num_files += len(version.files) + sum(len(artifact.files) for artifact in version.artifacts)
            if fitting and num_files > MAX_PAGE_FILES:
                break
            fitting.append(version)
        return Page(fitting, more=len(found) > len(fitting))

    def newest_weights(self, model_id: str) -> Version | None:
        weights = [v for v in self._of(model_id) if v.kind is VersionKind.WEIGHTS]
        newest = max(weights, key=lambda v: (v.state is VersionState.AVAILABLE, v.serial), default=None)
        return newest and self.version_header(model_id, newest.id)

    def adapters_on(self, model_id: str, version_id: str) -> Sequence[str]:
        return [version.id for version in self._of(model_id) if version.base_version_id == version_id]

    def insert_version(self, version: Version) -> None:
        self._versions[version.model_id, version.id] = version

    def update_version(self, version: Version) -> None:
        self._versions[version.model_id, version.id] = version

    def insert_artifact(self, version: Version, artifact: Artifact) -> None:
        present = self._versions[version.model_id, version.id]
        artifacts = sorted((*present.artifacts, artifact), key=lambda each: each.id)
        self.update_version(replace(present, artifacts=tuple(artifacts)))

    def delete_version(self, model_id: str, version_id: str) -> None:
        del self._versions[model_id, version_id]

    def versions_from(self, reference: str) -> Sequence[tuple[str, str]]:
        newest_first = reversed(self._newest_last())
        return [(v.model_id, v.id) for v in newest_first if reference in source_forms(v.source)]

    def models_from(self, reference: str) -> Sequence[str]:
        found = [model for model in self._models.values() if reference in source_forms(model.source)]
        return [m.id for m in sorted(found, key=lambda model: model.create_time, reverse=True)]

    def append_event(self, event: Event) -> None:
        self._events = [*self._events, event][-self._kept_events :]

    def events(self, *, after_sequence: int, limit: int) -> Sequence[Event]:
        return [event for event in self._events if event.sequence > after_sequence][:limit]

    def kept_events(self) -> tuple[int, int]:
        return self._events[0].sequence if self._events else self._last + 1, self._last

    def request(self, request_id: str) -> RequestRecord | None:
        return self._requests.get(request_id)

    def save_request(self, request: RequestRecord) -> None:
        self._requests[request.request_id] = request

    def _newest_last(self) -> list[Version]:
        return sorted(self._versions.values(), key=lambda version: version.serial)

    def _of(self, model_id: str) -> list[Version]:
        return [version for version in self._newest_last() if version.model_id == model_id]


class MemoryStore:
    """A `ModelStore` whose transactions are copies."""

    def __init__(self, *, kept_events: int = 10_000, is_sole_writer: bool = True) -> None:
        self.is_sole_writer = is_sole_writer
        self._records = MemoryRecords(kept_events)

    async def read(self, work: Callable[[Records], T]) -> T:
        return work(self._records.snapshot())

    async def write(self, work: Callable[[Records], T]) -> T:
        changed = self._records.snapshot()
        result = work(changed)
        self._records = changed
        return result
