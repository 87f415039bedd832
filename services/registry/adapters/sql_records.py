"""The records as one SQL transaction sees them. Every list is read in a fixed number of queries."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    Select,
    Table,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from services.registry.adapters import rows
from services.registry.adapters import tables as t
from services.registry.core.models import (
    Artifact,
    Capability,
    Event,
    File,
    Model,
    ModelFilter,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.ports import MAX_PAGE_FILES, Page, RequestRecord
from services.registry.core.rules import source_forms

VersionKey = tuple[str, str]


class SqlRecords:
    """`Records` on a session. The caller holds the lock if anything is written."""

    def __init__(self, session: Session, *, kept_events: int, kept_requests: int) -> None:
        self._session = session
        self._kept_events = kept_events
        self._kept_requests = kept_requests
        # What this transaction has read or written of models, to tell what a change leaves as it is.
        self._loaded: dict[str, Model] = {}

    def next_sequence(self) -> int:
        """See Records."""
        step = update(t.changes).values(last=t.changes.c.last + 1).returning(t.changes.c.last)
        return int(self._session.scalars(step).one())

    def last_sequence(self) -> int:
        """See Records."""
        return int(self._session.scalars(select(t.changes.c.last)).one())

    def model(self, model_id: str) -> Model | None:
        """See Records."""
        found = self._load_models(select(t.models).where(t.models.c.id == model_id))
        self._loaded.update({model.id: model for model in found})
        return found[0] if found else None

    def holder_of(self, name: str) -> str | None:
        """See Records."""
        by_id = select(t.models.c.id).where(t.models.c.id == name)
        by_alias = select(t.aliases.c.model_id).where(t.aliases.c.alias == name)
        return self._session.scalars(by_id.union_all(by_alias)).first()

    def models(self, models: ModelFilter, *, after_id: str, limit: int) -> Page[Model]:
        """See Records."""
        query = select(t.models).where(t.models.c.id > after_id, *_conditions(models))
        found = self._load_models(query.order_by(t.models.c.id).limit(limit + 1))
        return Page(found[:limit], more=len(found) > limit)

    def save_model(self, model: Model) -> None:
        """See Records."""
        before = self._loaded.get(model.id) or self.model(model.id)
        row = rows.model_to_row(model)
        if before is None:
            self._session.execute(insert(t.models).values(row))
        else:
            self._session.execute(update(t.models).where(t.models.c.id == model.id).values(row))
        # Most changes are of versions: they touch the model's row and nothing else of it.
        if before is None or before.aliases != model.aliases:
            self._replace(t.aliases, model.id, [{"alias": alias} for alias in model.aliases])
        if before is None or before.capabilities != model.capabilities:
            self._replace(t.capabilities, model.id, [{"capability": each} for each in model.capabilities])
        if before is None or before.source != model.source:
            self._session.execute(delete(t.sources).filter_by(model_id=model.id, version_id=""))
            self._insert_sources(model.id, "", model.source)
        self._loaded[model.id] = model

    def delete_model(self, model_id: str) -> None:
        """See Records. The rest goes with it, by its foreign keys."""
        self._loaded.pop(model_id, None)
        self._session.execute(delete(t.models).where(t.models.c.id == model_id))

    def model_size_bytes(self, model_id: str) -> int:
        """See Records."""
        blobs = (
            select(t.files.c.digest, t.files.c.size_bytes)
            .where(t.files.c.model_id == model_id)
            .distinct()
            .subquery()
        )
        return int(self._session.scalar(select(func.sum(blobs.c.size_bytes))) or 0)

    def version(self, model_id: str, version_id: str) -> Version | None:
        """See Records."""
        header = self._version_row(model_id, version_id)
        return self._load_versions([header])[0] if header else None

    def version_header(self, model_id: str, version_id: str) -> Version | None:
        """See Records."""
        header = self._version_row(model_id, version_id)
        return rows.version_from_row(header) if header else None

    def versions(self, model_id: str | None, *, after_serial: int, limit: int) -> Page[Version]:
        """See Records."""
        query = select(t.versions).where(t.versions.c.serial > after_serial)
        if model_id is not None:
            query = query.where(t.versions.c.model_id == model_id)
        query = query.order_by(t.versions.c.serial).limit(limit + 1)
        headers = self._session.execute(query).mappings().all()
        fitting = _fit(headers[:limit])
        return Page(self._load_versions(fitting), more=len(headers) > len(fitting))

    def newest_weights(self, model_id: str) -> Version | None:
        """See Records."""
        query = (
            select(t.versions)
            .where(t.versions.c.model_id == model_id, t.versions.c.kind == VersionKind.WEIGHTS)
            .order_by((t.versions.c.state == VersionState.AVAILABLE).desc(), t.versions.c.serial.desc())
            .limit(1)
        )
        header = self._session.execute(query).mappings().first()
        return rows.version_from_row(header) if header else None

    def adapters_on(self, model_id: str, version_id: str) -> Sequence[str]:
        """See Records."""
        query = select(t.versions.c.id).where(
            t.versions.c.model_id == model_id, t.versions.c.base_version_id == version_id
        )
        return self._session.scalars(query.order_by(t.versions.c.serial)).all()

    def insert_version(self, version: Version) -> None:
        """See Records."""
        self._session.execute(insert(t.versions).values(rows.version_to_row(version)))
        self._insert(t.files, rows.files_to_rows(version, "", version.files))
        self._insert_sources(version.model_id, version.id, version.source)

    def update_version(self, version: Version) -> None:
        """See Records."""
        values = rows.version_to_row(version)
        self._session.execute(update(t.versions).where(*_is(t.versions, version)).values(values))

    def insert_artifact(self, version: Version, artifact: Artifact) -> None:
        """See Records."""
        self._session.execute(insert(t.artifacts).values(rows.artifact_to_row(version, artifact)))
        self._insert(t.files, rows.files_to_rows(version, artifact.id, artifact.files))

    def delete_version(self, model_id: str, version_id: str) -> None:
        """See Records."""
        key = {"model_id": model_id, "version_id": version_id}
        self._session.execute(delete(t.sources).filter_by(**key))
        self._session.execute(delete(t.versions).filter_by(model_id=model_id, id=version_id))

    def versions_from(self, reference: str) -> Sequence[VersionKey]:
        """See Records."""
        query = (
            select(t.versions.c.model_id, t.versions.c.id)
            .join(
                t.sources,
                (t.sources.c.model_id == t.versions.c.model_id) & (t.sources.c.version_id == t.versions.c.id),
            )
            .where(t.sources.c.reference_hash == rows.hash_of(reference))
            .order_by(t.versions.c.serial.desc())
        )
        return [(model_id, version_id) for model_id, version_id in self._session.execute(query)]

    def models_from(self, reference: str) -> Sequence[str]:
        """See Records."""
        query = (
            select(t.models.c.id)
            .join(t.sources, t.sources.c.model_id == t.models.c.id)
            .where(t.sources.c.reference_hash == rows.hash_of(reference), t.sources.c.version_id == "")
            .order_by(t.models.c.create_time.desc(), t.models.c.id)
        )
        return self._session.scalars(query).all()

    def append_event(self, event: Event) -> None:
        """See Records."""
        self._session.execute(insert(t.events).values(rows.event_to_row(event)))
        too_old = t.events.c.sequence <= event.sequence - self._kept_events
        self._session.execute(delete(t.events).where(too_old))

    def events(self, *, after_sequence: int, limit: int) -> Sequence[Event]:
        """See Records."""
        query = select(t.events).where(t.events.c.sequence > after_sequence)
        found = self._session.execute(query.order_by(t.events.c.sequence).limit(limit))
        return [rows.event_from_row(row) for row in found.mappings()]

    def kept_events(self) -> tuple[int, int]:
        """See Records."""
        last = self.last_sequence()
        oldest = self._session.scalar(select(func.min(t.events.c.sequence)))
        return oldest if oldest is not None else last + 1, last

    def request(self, request_id: str) -> RequestRecord | None:
        """See Records."""
        query = select(t.requests).where(t.requests.c.request_id == request_id)
        row = self._session.execute(query).mappings().first()
        if row is None:
            return None
        return RequestRecord(row["request_id"], row["fingerprint"], row["model_id"], row["version_id"])

    def save_request(self, request: RequestRecord) -> None:
        """See Records."""
        serial = self.last_sequence()
        row = {
            "request_id": request.request_id,
            "fingerprint": request.fingerprint,
            "model_id": request.model_id,
            "version_id": request.version_id,
            "serial": serial,
        }
        self._session.execute(insert(t.requests).values(row))
        too_old = t.requests.c.serial <= serial - self._kept_requests
        self._session.execute(delete(t.requests).where(too_old))

    def _version_row(self, model_id: str, version_id: str) -> RowMapping | None:
        query = select(t.versions).filter_by(model_id=model_id, id=version_id)
        return self._session.execute(query).mappings().first()

    def _load_models(self, query: Select[tuple[object, ...]]) -> list[Model]:
        found = self._session.execute(query).mappings().all()
        ids = [row["id"] for row in found]
        alias_of: dict[str, list[str]] = defaultdict(list)
        for row in self._session.execute(select(t.aliases).where(t.aliases.c.model_id.in_(ids))):
            alias_of[row.model_id].append(row.alias)
        capabilities_of: dict[str, list[Capability]] = defaultdict(list)
        for row in self._session.execute(select(t.capabilities).where(t.capabilities.c.model_id.in_(ids))):
            capabilities_of[row.model_id].append(row.capability)
        return [rows.model_from_row(row, alias_of[row["id"]], capabilities_of[row["id"]]) for row in found]

    def _load_versions(self, headers: Sequence[RowMapping]) -> list[Version]:
        keys = [(row["model_id"], row["id"]) for row in headers]
        files_of: dict[tuple[str, str, str], list[File]] = defaultdict(list)
        query = select(t.files).where(tuple_(t.files.c.model_id, t.files.c.version_id).in_(keys))
        for row in self._session.execute(query.order_by(t.files.c.position)):
            owner = (row.model_id, row.version_id, row.artifact_id)
            files_of[owner].append(File(row.path, row.size_bytes, row.digest))
        artifacts_of: dict[VersionKey, list[Artifact]] = defaultdict(list)
        found = select(t.artifacts).where(tuple_(t.artifacts.c.model_id, t.artifacts.c.version_id).in_(keys))
        for artifact in self._session.execute(found.order_by(t.artifacts.c.id)).mappings():
            key = (artifact["model_id"], artifact["version_id"])
            artifacts_of[key].append(rows.artifact_from_row(artifact, files_of[*key, artifact["id"]]))
        return [
            rows.version_from_row(row, files_of[*key, ""], artifacts_of[key])
            for row, key in zip(headers, keys, strict=True)
        ]

    def _replace(self, table: Table, model_id: str, values: Sequence[rows.Row]) -> None:
        self._session.execute(delete(table).where(table.c.model_id == model_id))
        self._insert(table, [{"model_id": model_id, **value} for value in values])

    def _insert_sources(self, model_id: str, version_id: str, source: str) -> None:
        key = {"model_id": model_id, "version_id": version_id}
        hashes = [rows.hash_of(form) for form in source_forms(source)]
        self._insert(t.sources, [key | {"reference_hash": each} for each in hashes])

    def _insert(self, table: Table, values: Sequence[rows.Row]) -> None:
        if values:
            self._session.execute(insert(table), values)


def _conditions(models: ModelFilter) -> Iterable[ColumnElement[bool]]:
    """The filter in SQL; `ModelFilter.takes` says the same."""
    columns = t.models.c
    if models.kinds:
        yield columns.kind.in_(models.kinds)
    if models.providers:
        yield columns.provider.in_(models.providers)
    if models.states:
        yield columns.state.in_(models.states)
    if models.query:
        yield columns.search_text.contains(models.query.casefold(), autoescape=True)
    for capability in set(models.capabilities):
        yield exists().where(
            t.capabilities.c.model_id == columns.id, t.capabilities.c.capability == capability
        )


def _is(table: Table, version: Version) -> tuple[ColumnElement[bool], ...]:
    return (table.c.model_id == version.model_id, table.c.id == version.id)


def _fit(headers: Sequence[RowMapping]) -> list[RowMapping]:
    """As many as have MAX_PAGE_FILES files together, and at least one."""
    fitting: list[RowMapping] = []
    num_files = 0
    for header in headers:
        num_files += header["num_files"]
        if fitting and num_files > MAX_PAGE_FILES:
            break
        fitting.append(header)
    return fitting
