"""How models are asked for, required and kept up to date, over a port, with a real Registry and a hub that moves."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.service import build
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import (
    DownloadNotFound,
    InvalidArgument,
    InvalidPageToken,
    InvalidReference,
    JobFinished,
    ModelNotFound,
)
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.unit.services.downloader.http_server import Request, serving
from tests.unit.services.downloader.moving_hub import MovingHub
from tests.unit.services.downloader.wheels import gguf_bytes

FIRST = {"m.gguf": gguf_bytes() + b"1", "deep/notes.txt": b"1", "run.py": b"", "pytorch_model.bin": b""}
SECOND = FIRST | {"m.gguf": gguf_bytes() + b"22"}


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MovingHub]:
    hub = MovingHub(FIRST, SECOND)
    async with serving(hub.answer) as server:
        monkeypatch.setenv("LARES_DOWNLOADER_HF_ENDPOINT", server.url)
        yield hub


class House:
    """A registry and a downloader in this process."""

    def __init__(self, home: Path) -> None:
        self.host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)))
        self.server = GrpcServer(self.host, [build_registry, build])

    async def __aenter__(self) -> "House":
        await self.server.start()
        self.downloader: rpc.DownloaderServiceAsyncStub = rpc.DownloaderServiceStub(
            self.host.channel("downloader")
        )
        self.registry: registry_rpc.RegistryServiceAsyncStub = registry_rpc.RegistryServiceStub(
            self.host.channel("registry")
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(grace_s=1)

    async def create(self, source: str, **options: object) -> pb.Download:
        request = pb.CreateDownloadRequest(source=source, options=pb.PullOptions(**options))  # type: ignore[arg-type] # As a test names them.
        return (await self.downloader.CreateDownload(request)).download

    async def ended(self, name: str) -> pb.Download:
        watch = self.downloader.WatchDownload(pb.WatchDownloadRequest(name=name))
        async for _ in watch:
            pass
        return (await self.downloader.GetDownload(pb.GetDownloadRequest(name=name))).download

    async def pull(self, source: str, **options: object) -> pb.Download:
        done = await self.ended((await self.create(source, **options)).name)
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        return done

    async def check(self, *models: str, pull: bool = False) -> list[pb.Update]:
        request = pb.CheckUpdatesRequest(models=models, pull=pull)
        return list((await self.downloader.CheckUpdates(request)).updates)

    async def model(self) -> registry_pb2.Model:
        return (await self.registry.GetModel(registry_pb2.GetModelRequest(name="models/repo"))).model


@pytest.fixture
async def house(hub: MovingHub, tmp_path: Path) -> AsyncIterator[House]:
    async with House(tmp_path) as house:
        yield house


def commit(number: int) -> str:
    return f"hf:org/repo@{str(number) * 40}"


async def test_patterns_choose_files_and_make_a_version_of_their_own(house: House) -> None:
    whole = await house.pull(commit(1))
    some = await house.pull(commit(1), allow_patterns=["*.gguf", "deep/", "*.py", "*.bin"])
    assert some.version.startswith(f"{whole.version}-only-")
    assert {file.path for file in some.files} == {"m.gguf", "deep/notes.txt"}
    assert list(some.options.allow_patterns) == ["*.gguf", "deep/", "*.py", "*.bin"]
    less = await house.pull(commit(1), allow_patterns=["*.gguf", "deep/"], ignore_patterns=["deep/notes.txt"])
    assert {file.path for file in less.files} == {"m.gguf"}
    assert less.version not in (whole.version, some.version)
    nothing = await house.ended((await house.create(commit(1), allow_patterns=["*.bin"])).name)
    assert nothing.failure.reason == "UNSUPPORTED_FORMAT"
    no_model = await house.ended((await house.create(commit(1), allow_patterns=["*.txt"])).name)
    assert no_model.failure.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"allow_patterns": ["x"] * 65}, "options.allow_patterns"),
        ({"ignore_patterns": ["x" * 257]}, "options.ignore_patterns"),
        ({"allow_patterns": ["a\0"]}, "options.allow_patterns"),
        ({"priority": 101}, "options.priority"),
        ({"timeout": Duration(nanos=5)}, "options.timeout"),
        ({"timeout": Duration(seconds=10**12)}, "options.timeout"),
        ({"timeout": Duration(seconds=-60)}, "options.timeout"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    house: House, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught, translate_errors():
        await house.create(commit(1), **options)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_priority_is_changed_by_its_mask_and_nothing_else_is(house: House) -> None:
    done = await house.pull(commit(1), priority=5)
    assert done.options.priority == 5
    request = pb.UpdateDownloadRequest(
        download=pb.Download(name=done.name, options=pb.PullOptions(priority=9)),
        update_mask=FieldMask(paths=["options.priority"]),
    )
    with pytest.raises(JobFinished), translate_errors():
        await house.downloader.UpdateDownload(request)
    request.download.name = "downloads/nothing"
    with pytest.raises(DownloadNotFound), translate_errors():
        await house.downloader.UpdateDownload(request)
    request.update_mask.paths.append("source")
    with pytest.raises(InvalidArgument, match="'source' is no field"), translate_errors():
        await house.downloader.UpdateDownload(request)
    paused = await house.create("hf:org/absent@1")
    paused = await house.ended(paused.name)
    assert paused.failure.reason == "SOURCE_NOT_FOUND"


async def test_a_waiting_download_is_put_before_others(
    hub: MovingHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_DOWNLOADS", "1")
    go = asyncio.Event()
    answer = hub.answer

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await answer(request, writer)

    async with serving(held) as server:
        monkeypatch.setenv("LARES_DOWNLOADER_HF_ENDPOINT", server.url)
        async with House(tmp_path) as house:
            first = await house.create(commit(1))
            waiting = [
                await house.create(commit(2), ignore_patterns=[pattern]) for pattern in ("x", "y", "z")
            ]
            assert [download.state for download in waiting] == [pb.DOWNLOAD_STATE_QUEUED] * 3
            request = pb.UpdateDownloadRequest(
                download=pb.Download(name=waiting[2].name, options=pb.PullOptions(priority=1))
            )
            changed = (await house.downloader.UpdateDownload(request)).download
            assert (changed.options.priority, changed.state) == (1, pb.DOWNLOAD_STATE_QUEUED)
            go.set()
            ended = [await house.ended(download.name) for download in (first, *waiting)]
            begun = {download.name: download.start_time.ToDatetime(UTC) for download in ended}
            order = [first.name, waiting[2].name, waiting[0].name, waiting[1].name]
            assert sorted(begun, key=begun.__getitem__) == order


async def test_a_download_that_runs_too_long_is_told_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    monkeypatch.setenv("MODEL_DOWNLOAD_TIMEOUT", "0.1")
    async with serving(silent) as server, House(tmp_path) as house:
        failed = await house.ended((await house.create(f"{server.url}/m.gguf")).name)
        assert (failed.state, failed.failure.reason) == (pb.DOWNLOAD_STATE_FAILED, "DOWNLOAD_TIMEOUT")


async def test_what_is_required_is_told_and_pulled(
    hub: MovingHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARES_DOWNLOADER_REQUIRED", f"{commit(1)}, hf:org/absent@1")
    async with House(tmp_path) as house:
        told = await house.downloader.EnsureModels(pb.EnsureModelsRequest(dry_run=True))
        assert [(model.source, model.model, model.state) for model in told.models] == [
            (commit(1), "models/repo", pb.REQUIRED_STATE_MISSING),
            ("hf:org/absent@1", "models/absent", pb.REQUIRED_STATE_MISSING),
        ]
        assert not (await house.downloader.ListDownloads(pb.ListDownloadsRequest())).downloads
        begun = await house.downloader.EnsureModels(pb.EnsureModelsRequest())
        assert {model.state for model in begun.models} == {pb.REQUIRED_STATE_PULLING}
        done, failed = [await house.ended(model.download) for model in begun.models]
        assert failed.failure.reason == "SOURCE_NOT_FOUND"
        told = await house.downloader.EnsureModels(pb.EnsureModelsRequest(dry_run=True))
        assert (told.models[0].state, told.models[0].version) == (pb.REQUIRED_STATE_PRESENT, done.version)
        assert told.models[1].state == pb.REQUIRED_STATE_MISSING


async def test_an_update_is_told_pulled_and_held_back_after_a_rollback(house: House, hub: MovingHub) -> None:
    first = await house.pull(commit(1))
    [update] = await house.check()
    assert update.verdict == pb.UPDATE_VERDICT_UP_TO_DATE
    hub.main = "2" * 40
    [update] = await house.check("models/repo")
    assert (update.version, update.verdict) == (first.version, pb.UPDATE_VERDICT_AVAILABLE)
    assert (update.latest_source, update.download_bytes) == (commit(2), len(SECOND["m.gguf"]))
    assert (datetime.now(UTC) - update.check_time.ToDatetime(UTC)).total_seconds() < 3600
    [update] = await house.check(pull=True)
    second = await house.ended(update.download)
    assert second.version == update.latest_version
    model = await house.model()
    assert model.default_version == second.version
    change = registry_pb2.UpdateModelRequest(
        model=registry_pb2.Model(name=model.name, default_version=first.version, etag=model.etag),
        update_mask=FieldMask(paths=["default_version"]),
    )
    await house.registry.UpdateModel(change)
    [update] = await house.check(pull=True)
    assert (update.verdict, update.download) == (pb.UPDATE_VERDICT_HELD_BACK, "")
    assert (await house.model()).default_version == first.version
    num_asked = hub.num_asked
    listed = await house.downloader.ListUpdates(pb.ListUpdatesRequest())
    assert list(listed.updates) == [update]
    assert hub.num_asked == num_asked
    for wrong, error in (("models/none", ModelNotFound), ("none", InvalidReference)):
        with pytest.raises(error), translate_errors():
            await house.check(wrong)


async def test_updates_are_listed_in_pages(house: House) -> None:
    for name in ("a", "b", "c"):
        request = pb.CreateDownloadRequest(source=commit(1), model_id=name)
        await house.ended((await house.downloader.CreateDownload(request)).download.name)
    await house.check()
    first = await house.downloader.ListUpdates(pb.ListUpdatesRequest(page_size=2))
    second = await house.downloader.ListUpdates(
        pb.ListUpdatesRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [update.model for update in [*first.updates, *second.updates]] == [
        "models/a",
        "models/b",
        "models/c",
    ]
    assert not second.next_page_token
    with pytest.raises(InvalidPageToken), translate_errors():
        await house.downloader.ListUpdates(pb.ListUpdatesRequest(page_token="nonsense"))


@pytest.mark.parametrize("mode", ["report", "pull"])
async def test_the_service_checks_by_itself_if_it_is_told_to(
    hub: MovingHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    async with House(tmp_path) as house:
        first = await house.pull(commit(1))
    num_asked = hub.num_asked
    async with House(tmp_path) as house:
        assert not (await house.downloader.ListUpdates(pb.ListUpdatesRequest())).updates
    assert hub.num_asked == num_asked, "nobody is asked unless it is wanted"
    hub.main = "2" * 40
    monkeypatch.setenv("LARES_DOWNLOADER_UPDATE_CHECK", mode)
    async with House(tmp_path) as house:
        async with asyncio.timeout(60):
            while not (found := (await house.downloader.ListUpdates(pb.ListUpdatesRequest())).updates):
                pass
        assert found[0].verdict == pb.UPDATE_VERDICT_AVAILABLE
        if mode == "pull":
            await house.ended(found[0].download)
        is_updated = (await house.model()).default_version != first.version
        assert is_updated == (mode == "pull")
        num_asked = hub.num_asked
    # Not again before its time, however often the house starts.
    async with House(tmp_path) as house:
        assert (await house.downloader.ListUpdates(pb.ListUpdatesRequest())).updates == found
    assert hub.num_asked == num_asked


async def test_a_requirement_that_names_no_model_keeps_the_service_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARES_DOWNLOADER_REQUIRED", "no-such-model")
    with pytest.raises(InvalidArgument, match=r"downloader\.required"):
        build(Host(Settings(home=tmp_path)))
