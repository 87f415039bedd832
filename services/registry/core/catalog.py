"""The registry's one door: checks what is asked, runs it as one transaction, wakes those who watch."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from services.kit.names import parse_id
from services.registry.core import model_changes, rules, version_changes
from services.registry.core.models import Artifact, Model, ModelFilter, Resolution, Version
from services.registry.core.ports import ModelStore, Page, Records, RequestRecord
from services.registry.core.resolve import resolve
from services.registry.core.watch import Wakeup

T = TypeVar("T")

_MOST_RESOLUTIONS: Final = 1024


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name meant after a change to the records, and after so many writes of this process."""

    sequence: int
    num_writes: int
    resolution: Resolution


class Catalog:
    """Models and versions, read and changed. now: the clock, for tests."""

    def __init__(self, store: ModelStore, wakeup: Wakeup, *, now: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._wakeup = wakeup
        self._now = now
        self._resolutions: dict[str, _Known] = {}  # By reference: asked with every request for text.
        self._num_writes = 0  # Counted as each begins and again as it ends, so that none goes by unseen.

    async def create_model(self, draft: Model, *, request_id: str = "") -> Model:
        """Record a model. Raises InvalidArgument, ModelExists."""
        parse_id(draft.id, field="model_id")
        rules.check_request_id(request_id)
        draft = rules.check_model(draft)
        rules.check_has_no_version(draft)
        request = RequestRecord(request_id, rules.fingerprint(draft), draft.id)
        return await self._write(
            lambda records: model_changes.create_model(records, draft, request, self._now())
        )

    async def get_model(self, model_id: str) -> Model:
        """Raises ModelNotFound."""
        return await self._store.read(lambda records: model_changes.existing_model(records, model_id))

    async def list_models(self, models: ModelFilter, *, after_id: str, limit: int) -> Page[Model]:
        """Models in the order of their ids, from the first after `after_id`. Raises InvalidArgument."""
        rules.check_filter(models)
        return await self._store.read(lambda records: records.models(models, after_id=after_id, limit=limit))

    async def update_model(self, draft: Model, fields: Collection[str]) -> Model:
        """Take `fields` (as the contract calls them) from the draft, if its etag is empty or current.

        Raises InvalidArgument, ModelNotFound, EtagMismatch, ModelExists for an alias that is taken.
        """
        rules.check_mask(fields, rules.MODEL_FIELDS)
        names = ["default_version_id" if name == "default_version" else name for name in fields]
        return await self._write(
            lambda records: model_changes.update_model(records, draft, names, self._now())
        )

    async def delete_model(self, model_id: str, *, etag: str = "") -> None:
        """Delete a model with its versions. Raises ModelNotFound, EtagMismatch."""
        await self._write(lambda records: model_changes.delete_model(records, model_id, etag, self._now()))

    async def resolve(self, reference: str) -> Resolution:
        """What a name means. Raises InvalidReference, ModelNotFound, VersionNotFound, ModelNotAvailable."""
        known, num_writes = self._resolutions.get(reference), self._num_writes
        if known is not None and self._store.is_sole_writer and known.num_writes == num_writes:
            return known.resolution
        return await self._store.read(lambda records: self._resolved(records, reference, num_writes))

    def _resolved(self, records: Records, reference: str, num_writes: int) -> Resolution:
        """As it was read, if nothing at all has changed since."""
        sequence = records.last_sequence()
        known = self._resolutions.get(reference)
        found = known.resolution if known and known.sequence == sequence else resolve(records, reference)
        if len(self._resolutions) >= _MOST_RESOLUTIONS:
            self._resolutions.clear()
        self._resolutions[reference] = _Known(sequence, num_writes, found)
        return found

    async def create_version(self, draft: Version, *, request_id: str = "") -> Version:
        """Record a version. Raises InvalidArgument, ModelNotFound, VersionExists, ModelNotAvailable."""
        parse_id(draft.id, field="version_id")
        rules.check_request_id(request_id)
        draft = rules.check_version(draft)
        request = RequestRecord(request_id, rules.fingerprint(draft), draft.model_id, draft.id)
        return await self._write(
            lambda records: version_changes.create_version(records, draft, request, self._now())
        )

    async def get_version(self, model_id: str, version_id: str) -> Version:
        """Raises ModelNotFound, VersionNotFound."""
        return await self._store.read(
            lambda records: version_changes.existing_version(records, model_id, version_id)
        )

    async def list_versions(self, model_id: str | None, *, after_serial: int, limit: int) -> Page[Version]:
        """Versions by their creation; of all models if model_id is None. Raises ModelNotFound."""

        def work(records: Records) -> Page[Version]:
            if model_id is not None:
                model_changes.existing_model(records, model_id)
            return records.versions(model_id, after_serial=after_serial, limit=limit)

        return await self._store.read(work)

    async def update_version(self, draft: Version, fields: Collection[str]) -> Version:
        """As `update_model`. Raises InvalidArgument, ModelNotFound, VersionNotFound, EtagMismatch."""
        rules.check_mask(fields, rules.VERSION_FIELDS)
        return await self._write(
            lambda records: version_changes.update_version(records, draft, fields, self._now())
        )

    async def delete_version(
        self, model_id: str, version_id: str, *, etag: str = "", force: bool = False
    ) -> None:
        """Delete a version. Raises ModelNotFound, VersionNotFound, EtagMismatch, ModelInUse."""
        await self._write(
            lambda records: version_changes.delete_version(
                records, model_id, version_id, etag, self._now(), force=force
            )
        )

    async def create_artifact(self, model_id: str, version_id: str, draft: Artifact) -> Version:
        """Record a derived form. Raises InvalidArgument, VersionNotFound, AlreadyExists."""
        rules.check_artifact(draft)
        return await self._write(
            lambda records: version_changes.create_artifact(records, model_id, version_id, draft, self._now())
        )

    async def _write(self, work: Callable[[Records], T]) -> T:
        self._num_writes += 1
        try:
            return await self._store.write(work)
        finally:
            # Also when the caller has hung up: the transaction may be committed.
            self._num_writes += 1
            self._wakeup.wake()
