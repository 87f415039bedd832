"""The queue of downloads: a bounded number at once, each on its own task, over restarts; and those who watch.

Callers come and go; a download belongs to nobody. What has to survive is written down when its state or phase
changes, and while bytes flow every few seconds: they lie on disk themselves, so no more is lost than a number.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from services.downloader.core.blobs import utc_now
from services.downloader.core.catalog import Catalog, Plan
from services.downloader.core.download import (
    DEFAULT_OPTIONS,
    Download,
    DownloadPhase,
    DownloadState,
    Failure,
    FileProgress,
    PullOptions,
)
from services.downloader.core.ids import new_id
from services.downloader.core.options import check_options, check_priority
from services.downloader.core.ports import DownloadStore
from services.downloader.core.progress import Speed, eta_s
from services.downloader.core.pull import Puller
from services.downloader.core.sources import RemoteFile
from services.downloader.core.turns import Turns
from services.kit.errors import (
    DownloadNotFound,
    DownloadTimeout,
    InternalError,
    JobFinished,
    LaresError,
    QueueFull,
)

MAX_QUEUED: Final = 1000

_log = structlog.get_logger(__name__)

_RECENT: Final = 100
_PUBLISH_S: Final = 0.2
_SAVE_S: Final = 5.0


class LiveDownload:
    """A download that somebody may be watching: its newest state, its number, and the word that it changed.

    is_recorded: its state was written down. If not, as on a full disk, only this here knows it.
    """

    def __init__(self, download: Download) -> None:
        self.download = download
        self.is_recorded = True
        self.sequence = 0
        self._changed = asyncio.Event()
        self.publish(download)

    def publish(self, download: Download) -> None:
        """Tell all watchers. However slow they are, they get the newest state next, not every one."""
        self.download = download
        # By the clock, so that numbers grow over restarts too, without being written down.
        age_ms = int((utc_now() - download.create_time).total_seconds() * 1000)
        self.sequence = max(self.sequence + 1, age_ms)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed_since(self, sequence: int) -> None:
        """Return when there is something newer."""
        while self.sequence <= sequence:
            await self._changed.wait()


class DownloadJobs:
    """All downloads. Make it, `start` it inside the event loop, `stop` it.

    timeout_s: what a download may take that says nothing about it, its waiting not counted; 0 for as long as it takes.
    """

    def __init__(
        self,
        puller: Puller,
        catalog: Catalog,
        records: DownloadStore,
        *,
        max_concurrent: int,
        timeout_s: float = 0,
    ) -> None:
        self._puller = puller
        self._catalog = catalog
        self._records = records
        self._timeout_s = timeout_s
        self._turns = Turns(max_concurrent)
        self._changing = asyncio.Lock()
        self._live: dict[str, LiveDownload] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Go on with what was under way when the service ended."""
        unfinished = await self._records.downloads(
            [DownloadState.QUEUED, DownloadState.RUNNING], before_id=None, limit=MAX_QUEUED
        )
        # In their order: the first to ask gets a free turn.
        for download in sorted(unfinished, key=_rank):
            self._launch(download.interrupted())

    async def stop(self) -> None:
        """Stop all of them; the next start goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def create(
        self,
        source: str,
        *,
        model_id: str = "",
        request_id: str = "",
        options: PullOptions = DEFAULT_OPTIONS,
    ) -> Download:
        """Begin a download, or join the one that is under way or paused; its priority is then the higher of both.

        Raises InvalidReference, InvalidArgument, SourceNotFound, QueueFull.
        """
        plan = self._catalog.plan(source, model_id=model_id)
        check_options(options, plan.refs[0])
        wanted = Download(
            new_id(), plan.source, plan.model_id, utc_now(), request_id=request_id, options=options
        )
        async with self._changing:
            if request_id and (first := await self._records.download_of_request(request_id)):
                return await self.get(first.id)
            paused = await self.page([DownloadState.PAUSED], before_id=None, limit=_RECENT)
            active = [each.download for each in self._live.values() if each.download.state.is_active]
            for download in [*active, *paused]:
                if download.pulls_the_same_as(wanted):
                    priority = max(download.options.priority, options.priority)
                    return await self._go_on(await self._with_priority(download, priority))
            if len(active) >= MAX_QUEUED:
                raise QueueFull(
                    f"{len(active)} downloads are waiting already; try again when some have ended"
                )
            # Recorded first: garbage collection knows an ingest folder by its download.
            await self._records.save_download(wanted)
            await self._inherit(wanted)
            self._launch(wanted)
            return wanted

    async def get(self, download_id: str) -> Download:
        """How it stands. Raises DownloadNotFound."""
        live = self._live.get(download_id)
        return live.download if live else await self._recorded(download_id)

    async def page(
        self, states: Sequence[DownloadState], *, before_id: str | None, limit: int
    ) -> list[Download]:
        """Newest first, older than `before_id`."""
        recorded = await self._records.downloads(states, before_id=before_id, limit=limit)
        return [self._live[each.id].download if each.id in self._live else each for each in recorded]

    async def watch(self, download_id: str) -> AsyncGenerator[tuple[int, Download], None]:
        """(number, how it stands), now and whenever it has changed, until it has ended. Raises DownloadNotFound."""
        live = await self._watched(download_id)
        while True:
            sequence, download = live.sequence, live.download
            yield sequence, download
            if download.state.is_final:
                return
            await live.changed_since(sequence)

    async def pause(self, download_id: str) -> Download:
        """Stop it and keep what has arrived. Raises DownloadNotFound, JobFinished."""
        return await self._halt(download_id, lambda download: download.paused())

    async def cancel(self, download_id: str) -> Download:
        """End it and drop what has arrived. Raises DownloadNotFound, JobFinished."""
        download = await self._halt(download_id, lambda download: download.cancelled(utc_now()))
        async with self._changing:
            # It may have been resumed meanwhile.
            if not (await self.get(download_id)).state.is_active:
                await self._puller.blobs.drop_ingest(download_id)
        return download

    async def resume(self, download_id: str) -> Download:
        """Go on with it. Raises DownloadNotFound, JobFinished if it has succeeded."""
        async with self._changing:
            return await self._go_on(await self.get(download_id))

    async def update(self, download_id: str, *, priority: int) -> Download:
        """Have it go before others, or after them. Raises InvalidArgument, DownloadNotFound, JobFinished."""
        check_priority(priority)
        async with self._changing:
            download = await self.get(download_id)
            if download.state.is_final:
                raise JobFinished(
                    f"{download.name} has ended ({download.state.name.lower()}); nothing of it can be changed"
                )
            return await self._with_priority(download, priority)

    async def _go_on(self, download: Download) -> Download:
        if download.state.is_active:
            return download
        queued = download.queued()
        await self._records.save_download(queued)
        self._launch(queued)
        return queued

    async def _with_priority(self, download: Download, priority: int) -> Download:
        if download.options.priority == priority:
            return download
        changed = download.with_priority(priority)
        if (live := self._live.get(download.id)) is not None:
            live.publish(changed)
        # What runs writes itself down, this too: nobody else may, or an older state could come after its last.
        if changed.state is not DownloadState.RUNNING:
            await self._records.save_download(changed)
        return changed

    async def _inherit(self, download: Download) -> None:
        """Whoever pulls again after a failure goes on from what that left; not from what was taken from a folder."""
        failed = await self._records.downloads([DownloadState.FAILED], before_id=None, limit=_RECENT)
        for before in failed:
            if before.pulls_the_same_as(download):
                await self._puller.blobs.store.move_ingest(before.id, download.id)
                return

    def _launch(self, download: Download) -> None:
        live = self._live.get(download.id)
        if live is None:
            live = self._live[download.id] = LiveDownload(download)
        else:
            live.publish(download)
        task = asyncio.create_task(self._run(live), name=download.name)
        self._tasks[download.id] = task
        task.add_done_callback(lambda _: self._forget(download.id, task))

    def _forget(self, download_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(download_id) is task:
            del self._tasks[download_id]
            live = self._live.get(download_id)
            if live is not None and live.download.state.is_final and live.is_recorded:
                del self._live[download_id]

    async def _run(self, live: LiveDownload) -> None:
        async with self._turns.turn(lambda: _rank(live.download)):
            await self._settle(live, live.download.started(utc_now()))
            try:
                version = await self._pull_in_time(live)
            except LaresError as error:
                ended = live.download.failed(Failure.of(error), utc_now())
            except Exception:  # A bug of ours ends this download, told and logged; the queue goes on.
                _log.exception("download failed for a reason that is ours", download=live.download.name)
                bug = InternalError(
                    "the download failed for a reason that is ours; the service's log says more"
                )
                ended = live.download.failed(Failure.of(bug), utc_now())
            else:
                ended = live.download.succeeded(version, utc_now())
                await self._puller.blobs.drop_ingest(live.download.id)
            await self._settle(live, ended)

    async def _pull_in_time(self, live: LiveDownload) -> str:
        limit_s = live.download.options.timeout_s or self._timeout_s
        try:
            async with asyncio.timeout(limit_s or None) as clock:
                return await self._pull(live)
        except TimeoutError:
            if not clock.expired():
                raise  # Not ours: the system has one of that name too.
            raise DownloadTimeout(
                f"it ran for {limit_s:g} s, which is all that it may take; what has arrived is kept, and a new pull"
                " goes on from there"
            ) from None

    async def _pull(self, live: LiveDownload) -> str:
        plan: Plan = self._catalog.plan(live.download.source, model_id=live.download.model_id)
        report = _Report(live, self._records)
        telling = asyncio.create_task(report.tell())
        try:
            return await self._puller.pull(live.download, plan, report)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
            report.publish()

    async def _settle(self, live: LiveDownload, download: Download) -> None:
        """Written down before it is told; told all the same if it cannot be, for somebody may be waiting."""
        live.is_recorded = False
        try:
            await self._records.save_download(download)
            live.is_recorded = True
        except LaresError as error:
            _log.error("download cannot be written down", download=download.name, why=error.message)
        live.publish(download)

    async def _halt(self, download_id: str, change: Callable[[Download], Download]) -> Download:
        async with self._changing:
            live = await self._watched(download_id)
            change(live.download)  # Refuses what has ended, before anything is stopped.
            if (task := self._tasks.get(download_id)) is not None:
                task.cancel()
                await asyncio.wait([task])
            await self._settle(live, change(live.download))
            if live.download.state.is_final and live.is_recorded:
                self._live.pop(download_id, None)
            return live.download

    async def _watched(self, download_id: str) -> LiveDownload:
        """The live one; one that is paused becomes live, for it may be resumed while it is watched."""
        live = self._live.get(download_id)
        if live is None:
            live = LiveDownload(await self._recorded(download_id))
            if not live.download.state.is_final:
                live = self._live.setdefault(download_id, live)
        return live

    async def _recorded(self, download_id: str) -> Download:
        download = await self._records.download(download_id)
        if download is None:
            raise DownloadNotFound.named(f"downloads/{download_id}")
        return download


def _rank(download: Download) -> tuple[int, datetime, str]:
    """Less for one that goes first."""
    return (-download.options.priority, download.create_time, download.id)


class _Report:
    """A pull's `Reporter`: counts as often as it is told, publishes a few times a second, writes down more rarely."""

    def __init__(self, live: LiveDownload, records: DownloadStore) -> None:
        self._live = live
        self._records = records
        self._files: list[FileProgress] = []
        self._speed = Speed()
        self._has_news = False
        self._is_unsaved = False

    def enter(self, phase: DownloadPhase) -> None:
        """It begins the next thing."""
        self.publish()
        self._live.publish(self._live.download.in_phase(phase))
        self._is_unsaved = True

    def resolved(self, source: str, files: Sequence[RemoteFile]) -> None:
        """It knows what there is."""
        self._files = [FileProgress(file.path, 0, file.size_bytes) for file in files]
        self._live.publish(replace(self._live.download, resolved_source=source, files=tuple(self._files)))
        self._is_unsaved = True

    def arrived(self, index: int, num_bytes: int, size_bytes: int | None) -> None:
        """So much of a file is here."""
        self._files[index] = FileProgress(self._files[index].path, num_bytes, size_bytes)
        self._has_news = True

    def publish(self) -> None:
        """Tell the watchers, if there is anything new."""
        if not self._has_news:
            return
        self._has_news = False
        download = replace(self._live.download, files=tuple(self._files))
        if download.phase is DownloadPhase.FETCHING:
            rate = self._speed.sample(time.monotonic(), download.completed_bytes)
            left_s = eta_s(download.completed_bytes, download.total_bytes, rate)
            download = replace(download, bytes_per_second=rate, eta_s=left_s)
        self._live.publish(download)

    async def tell(self) -> None:
        """Do so until cancelled."""
        saved_at = time.monotonic()
        while True:
            await asyncio.sleep(_PUBLISH_S)
            is_due = self._has_news and time.monotonic() - saved_at > _SAVE_S
            self.publish()
            if self._is_unsaved or is_due:
                self._is_unsaved = False
                saved_at = time.monotonic()
                with contextlib.suppress(LaresError):  # The next one will do; states are saved elsewhere.
                    await self._records.save_download(self._live.download)
