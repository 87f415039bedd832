"""What the registry needs of whatever keeps its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.registry.core.models import Artifact, Event, Model, ModelFilter, Version

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)

MAX_PAGE_FILES = 20_000
"""A page of versions ends early when it has this many files, so that it fits one message."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of a list, and whether more follow."""

    items: Sequence[Item]
    more: bool


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that was carried out. fingerprint: of what it asked; model_id, version_id: what it made."""

    request_id: str
    fingerprint: str
    model_id: str
    version_id: str = ""


class Records(Protocol):
    """The records as one transaction sees them. Plain calls: it all runs in the store's own thread."""

    def next_sequence(self) -> int:
        """The number of a new change: one more than the last, whoever made that."""

    def last_sequence(self) -> int:
        """The number of the last change, 0 before the first."""

    def model(self, model_id: str) -> Model | None:
        """The model of that id."""

    def holder_of(self, name: str) -> str | None:
        """The id of the model that has this name as its id or an alias."""

    def models(self, models: ModelFilter, *, after_id: str, limit: int) -> Page[Model]:
        """Models in the order of their ids (by code point), from the first after `after_id`."""

    def save_model(self, model: Model) -> None:
        """Insert it, or replace all of it."""

    def delete_model(self, model_id: str) -> None:
        """Delete it with its versions and aliases."""

    def model_size_bytes(self, model_id: str) -> int:
        """Bytes of all its versions and artifacts, a digest counted once."""

    def version(self, model_id: str, version_id: str) -> Version | None:
        """The version, with its files and artifacts."""

    def version_header(self, model_id: str, version_id: str) -> Version | None:
        """The version without its files and artifacts, of which there may be many."""

    def versions(self, model_id: str | None, *, after_serial: int, limit: int) -> Page[Version]:
        """Versions by serial, with their files; of all models if model_id is None.

        Fewer than `limit` when more would hold over MAX_PAGE_FILES files, but at least one if there is one.
        """

    def newest_weights(self, model_id: str) -> Version | None:
        """Its newest version of full weights: an available one if there is one. As a header."""

    def adapters_on(self, model_id: str, version_id: str) -> Sequence[str]:
        """Ids of the adapters that are built on a version."""

    def insert_version(self, version: Version) -> None:
        """Record a new version with its files."""

    def update_version(self, version: Version) -> None:
        """Replace all but its files and artifacts."""

    def insert_artifact(self, version: Version, artifact: Artifact) -> None:
        """Record a new artifact with its files."""

    def delete_version(self, model_id: str, version_id: str) -> None:
        """Delete it with its files and artifacts."""

    def versions_from(self, reference: str) -> Sequence[tuple[str, str]]:
        """(model id, version id) of versions one of whose `source_forms` is `reference`, newest first."""

    def models_from(self, reference: str) -> Sequence[str]:
        """Ids of models one of whose `source_forms` is `reference`, newest first."""

    def append_event(self, event: Event) -> None:
        """Record an event, and drop those that are too old to be kept."""

    def events(self, *, after_sequence: int, limit: int) -> Sequence[Event]:
        """Events with higher numbers, in order."""

    def kept_events(self) -> tuple[int, int]:
        """(number of the oldest event, number of the last change); the first is one more if none is kept."""

    def request(self, request_id: str) -> RequestRecord | None:
        """The request that was carried out under that id, if it is still known."""

    def save_request(self, request: RequestRecord) -> None:
        """Remember a request; the oldest are forgotten."""


class ModelStore(Protocol):
    """Runs units of work in transactions. Writes happen one after another."""

    @property
    def is_sole_writer(self) -> bool:
        """Whether all changes go through this store. If not, replicas make some too."""

    async def read(self, work: Callable[[Records], T]) -> T:
        """Run `work` on one consistent view. Raises Unavailable."""

    async def write(self, work: Callable[[Records], T]) -> T:
        """Run `work`; keep its changes if it returns, none if it raises. Raises Unavailable, DiskFull."""
