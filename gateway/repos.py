"""The house's versions as repositories: asked of the registry, and remembered for a moment.

A client asks twice for each file, and a version may have thousands: what it is need not be told so often.
"""

import time
from collections.abc import Callable
from typing import Final

from gateway.hub.repo import MAIN, Repo, is_called, reference_of
from gateway.upstream import Upstream, all_pages, unary
from lares.registry.v1 import registry_pb2 as pb
from services.kit import names
from services.kit.errors import ModelNotAvailable, VersionNotFound

_MOST_REMEMBERED: Final = 32
_PAGE_SIZE: Final = 100


class Repos:
    """remember_s: how long an answer may be out of date. now_s: the clock, for tests."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        timeout_s: float,
        remember_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._timeout_s = timeout_s
        self._remember_s = remember_s
        self._now_s = now_s
        self._known: dict[tuple[str, str], tuple[float, Repo]] = {}

    async def find(self, repo_id: str, revision: str) -> Repo:
        """Raises ModelNotFound, VersionNotFound also for what is quarantined."""
        now_s, key = self._now_s(), (repo_id, revision)
        known = self._known.get(key)
        if known is not None and now_s < known[0]:
            return known[1]
        repo = await self._find(repo_id, revision)
        if self._remember_s:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = now_s + self._remember_s, repo
        return repo

    async def _find(self, repo_id: str, revision: str) -> Repo:
        model, current = await self._current(reference_of(repo_id))
        if revision == MAIN:
            if current is None:
                raise VersionNotFound(
                    f"the current version of '{repo_id}' is not available; pull the model again"
                )
            return Repo(repo_id, model, current)
        if current is not None and is_called(current, revision):
            return Repo(repo_id, model, current)
        for version in await self._versions(model):
            if version.state == pb.VERSION_STATE_AVAILABLE and is_called(version, revision):
                return Repo(repo_id, model, version)
        raise VersionNotFound.named(names.parse_model_name(model.name), revision[:200])

    async def _current(self, reference: str) -> tuple[pb.Model, pb.Version | None]:
        """A model and the version that answers; None while that is not available: an older one may be."""
        registry, timeout_s = self._upstream.registry, self._timeout_s
        try:
            message = pb.ResolveModelRequest(reference=reference)
            resolved = await unary(registry.ResolveModel(message, timeout=timeout_s))
        except ModelNotAvailable as error:
            wanted = pb.GetModelRequest(name=names.model_name(error.metadata["model"]))
            return (await unary(registry.GetModel(wanted, timeout=timeout_s))).model, None
        return resolved.model, resolved.version

    async def _versions(self, model: pb.Model) -> list[pb.Version]:
        async def fetch(page_token: str) -> tuple[list[pb.Version], str]:
            message = pb.ListVersionsRequest(parent=model.name, page_size=_PAGE_SIZE, page_token=page_token)
            answer = await unary(self._upstream.registry.ListVersions(message, timeout=self._timeout_s))
            return list(answer.versions), answer.next_page_token

        return await all_pages(fetch)
