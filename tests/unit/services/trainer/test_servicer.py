"""The Trainer over gRPC, with real files, a real database and real workers on a tiny model."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from lares.registry.v1 import registry_pb2 as registry
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit.channels import translate_errors
from services.kit.errors import (
    DatasetNotFound,
    FailedPrecondition,
    InvalidArgument,
    InvalidDataset,
    InvalidPageToken,
    InvalidReference,
    JobFinished,
    JobNotFound,
    ModelNotFound,
    PayloadTooLarge,
    ServiceDraining,
    VersionExists,
    WrongModelKind,
)
from services.trainer.adapters.checkpoint_files import CheckpointFiles
from services.trainer.core.model import Checkpoint
from tests.unit.services.trainer.house import House
from tests.unit.services.trainer.served import Served, chat_lines, serve
from tests.unit.services.trainer.test_train_worker import worker_pid

SHORT = pb.Hyperparameters(
    max_steps=4, batch_size=2, max_sequence_tokens=128, save_steps=2, learning_rate=1e-2
)
ENDLESS = pb.Hyperparameters(max_steps=1_000_000, batch_size=2, max_sequence_tokens=128, save_steps=1)


@pytest.fixture
def house(tiny_model: Path) -> House:
    house = House(tiny_model)
    house.registry.add("tiny")
    return house


@pytest.fixture
async def served(house: House, tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(house, tmp_path) as served:
        yield served


async def test_a_dataset_is_taken_in_and_read_back_as_it_was(served: Served) -> None:
    content = (
        b"\xef\xbb\xbf" + chat_lines([("Hi", "Hello")]) + b"\r\n" + chat_lines([("Xin chào", "Chào bạn 😀")])
    )
    dataset = await served.upload(content, file_name="dữ liệu.jsonl")
    assert (dataset.num_examples, dataset.size_bytes) == (2, len(content))
    assert dataset.format == pb.DATASET_FORMAT_CHAT
    assert dataset.file_name == "dữ liệu.jsonl"
    read = served.client.ReadDataset(pb.ReadDatasetRequest(name=dataset.name))
    assert b"".join([part.chunk async for part in read]) == content


async def test_lines_at_fault_are_named_and_nothing_is_kept(served: Served, tmp_path: Path) -> None:
    content = chat_lines([("a", "b")]) + b'{"messages": []}\n' + b"no json\n"
    with pytest.raises(InvalidDataset) as caught:
        await served.upload(content)
    assert [violation.field for violation in caught.value.violations] == ["line 2", "line 3"]
    assert not (await served.client.ListDatasets(pb.ListDatasetsRequest())).datasets
    assert [path.name for path in (tmp_path / "trainer" / "datasets").iterdir()] == ["drafts"]
    assert not list((tmp_path / "trainer" / "datasets" / "drafts").iterdir())


@pytest.mark.parametrize(
    "file_name", ["/proc/self/environ", "../x", "..", "a\\b", "", "x" * 256, "a\nb", "a\x00b"]
)
async def test_a_file_name_is_a_label_and_never_a_path(served: Served, file_name: str) -> None:
    with pytest.raises(InvalidArgument):
        await served.upload(chat_lines([("a", "b")]), file_name=file_name)


@pytest.mark.parametrize(
    "name", ["datasets/../jobs", "datasets//etc/passwd", "datasets/..", "/proc/self/environ"]
)
async def test_names_that_are_paths_do_not_parse(served: Served, name: str) -> None:
    with pytest.raises(InvalidReference), translate_errors():
        await served.client.GetDataset(pb.GetDatasetRequest(name=name))


async def test_a_file_past_the_limit_is_refused(house: House, tmp_path: Path) -> None:
    async with serve(house, tmp_path, max_dataset_bytes=100) as served:
        with pytest.raises(PayloadTooLarge):
            await served.upload(chat_lines([("a", "b" * 200)]))


async def test_the_first_message_must_be_a_header(served: Served) -> None:
    with pytest.raises(InvalidArgument), translate_errors():
        await served.client.CreateDataset(iter([pb.CreateDatasetRequest(chunk=b"x")]))


async def test_equal_files_share_bytes_until_the_last_is_deleted(served: Served, tmp_path: Path) -> None:
    first, second = await served.upload_examples(), await served.upload_examples()
    assert first.name != second.name
    assert first.digest == second.digest
    file = tmp_path / "trainer" / "datasets" / f"{first.digest.removeprefix('sha256:')}.jsonl"
    await served.client.DeleteDataset(pb.DeleteDatasetRequest(name=first.name))
    assert file.exists()
    await served.client.DeleteDataset(pb.DeleteDatasetRequest(name=second.name))
    assert not file.exists()
    with pytest.raises(DatasetNotFound), translate_errors():
        await served.client.GetDataset(pb.GetDatasetRequest(name=second.name))


async def test_a_repeated_request_returns_the_first_ones_result(served: Served) -> None:
    first = await served.upload(chat_lines([("a", "b")]), request_id="r")
    assert await served.upload(chat_lines([("c", "d")]), request_id="r") == first
    job = await served.create(first, request_id="j", hyperparameters=ENDLESS)
    assert (await served.create(first, request_id="j")).name == job.name


async def test_datasets_come_in_pages_newest_first(served: Served) -> None:
    made = [(await served.upload(chat_lines([("q", str(i))]))).name for i in range(3)]
    page = await served.client.ListDatasets(pb.ListDatasetsRequest(page_size=2))
    rest = await served.client.ListDatasets(
        pb.ListDatasetsRequest(page_size=2, page_token=page.next_page_token)
    )
    assert [d.name for d in [*page.datasets, *rest.datasets]] == made[::-1]
    assert not rest.next_page_token
    with pytest.raises(InvalidPageToken), translate_errors():
        await served.client.ListJobs(pb.ListJobsRequest(page_token=page.next_page_token))
    with pytest.raises(InvalidArgument), translate_errors():
        await served.client.ListDatasets(pb.ListDatasetsRequest(page_size=1001))


async def test_what_a_job_must_not_ask_for_is_named_by_field(served: Served) -> None:
    dataset = await served.upload_examples()
    with pytest.raises(InvalidArgument) as caught:
        await served.create(
            dataset,
            adapter_id="../x",
            lora=pb.LoraConfig(rank=0, dropout=1),
            hyperparameters=pb.Hyperparameters(batch_size=0, learning_rate=2),
        )
    assert {violation.field for violation in caught.value.violations} == {
        "job.adapter_id",
        "job.lora.rank",
        "job.lora.alpha",
        "job.lora.dropout",
        "job.hyperparameters.batch_size",
        "job.hyperparameters.learning_rate",
    }


async def test_unknown_things_and_wrong_kinds_are_told_apart(served: Served) -> None:
    dataset = await served.upload_examples()
    served.house.registry.add("minilm", kind=registry.MODEL_KIND_EMBEDDING)
    with pytest.raises(ModelNotFound) as missing:
        await served.create(dataset, base_model="nobody")
    assert missing.value.violations[0].field == "job.base_model"
    with pytest.raises(WrongModelKind):
        await served.create(dataset, base_model="minilm")
    with pytest.raises(DatasetNotFound) as absent:
        await served.create(pb.Dataset(name="datasets/none"))
    assert absent.value.violations[0].field == "job.dataset"
    with pytest.raises(InvalidArgument, match="context"):
        await served.create(dataset, hyperparameters=pb.Hyperparameters(max_sequence_tokens=257))
    with pytest.raises(JobNotFound):
        await served.get(pb.Job(name="jobs/none"))


async def test_a_job_becomes_a_version_that_can_be_chatted_with(served: Served) -> None:
    dataset = await served.upload_examples()
    job = await served.create(dataset, adapter_id="squares", hyperparameters=SHORT, labels={"team": "a"})
    assert job.state == pb.JOB_STATE_QUEUED
    assert job.progress.total_steps == 4
    events = [event async for event in served.watch(job)]
    job = await served.get(job)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert job.served_name == "tiny:squares"
    assert job.result_version == "models/tiny/versions/squares"
    assert job.progress.step == 4

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state for event in events if event.WhichOneof("detail") == "state"]
    assert states == [pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_SUCCEEDED]
    assert [event.checkpoint.step for event in events if event.HasField("checkpoint")] == [2, 4]
    assert [event.progress.step for event in events if event.HasField("progress")][-1] == 4

    version = served.house.registry.versions[job.result_version]
    assert version.kind == registry.VERSION_KIND_ADAPTER
    assert version.base_version == "models/tiny/versions/1"
    assert version.source == job.name
    assert [file.path for file in version.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(file.digest in served.house.downloader.blobs for file in version.files)
    assert not served.house.downloader.leases

    listed = await served.client.ListCheckpoints(pb.ListCheckpointsRequest(parent=job.name))
    assert [checkpoint.step for checkpoint in listed.checkpoints] == [2, 4]
    later = [event.sequence async for event in served.watch(job, after=events[-2].sequence)]
    assert later == [events[-1].sequence]
    page = await served.client.ListJobEvents(pb.ListJobEventsRequest(parent=job.name, page_size=3))
    assert [event.sequence for event in page.events] == [1, 2, 3]
    assert page.next_page_token
    found = await served.client.ListJobs(pb.ListJobsRequest(states=[pb.JOB_STATE_SUCCEEDED]))
    assert [listed_job.name for listed_job in found.jobs] == [job.name]

    with pytest.raises(JobFinished):
        await served.cancel(job)
    with pytest.raises(VersionExists):
        await served.create(dataset, adapter_id="squares")


async def test_a_cancelled_job_ends_within_five_seconds_and_leaves_no_version(served: Served) -> None:
    dataset = await served.upload_examples()
    job = await served.create(dataset, hyperparameters=ENDLESS, adapter_id="never")
    await first_step(served, job)
    pid = worker_pid()
    with pytest.raises(FailedPrecondition, match="needed by"), translate_errors():
        await served.client.DeleteDataset(pb.DeleteDatasetRequest(name=dataset.name))
    with pytest.raises(VersionExists):
        await served.create(dataset, adapter_id="never")
    async with asyncio.timeout(5):
        assert (await served.cancel(job)).state == pb.JOB_STATE_CANCELLED
    assert not psutil.pid_exists(pid)
    assert "models/tiny/versions/never" not in served.house.registry.versions
    await served.client.DeleteDataset(pb.DeleteDatasetRequest(name=dataset.name))


async def test_a_killed_worker_is_replaced_and_the_job_succeeds(served: Served) -> None:
    dataset = await served.upload_examples()
    job = await served.create(dataset, hyperparameters=SHORT)
    await first_step(served, job)
    os.kill(worker_pid(), signal.SIGKILL)
    job = await served.finish(job)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert job.num_restarts == 1


async def test_a_job_whose_worker_dies_again_and_again_fails(house: House, tmp_path: Path) -> None:
    async with serve(house, tmp_path, max_fruitless_restarts=1, load_timeout_s=0.2) as served:
        job = await served.finish(await served.create(await served.upload_examples()))
    assert job.state == pb.JOB_STATE_FAILED
    assert job.failure.reason == "WORKER_LOST"
    assert job.num_restarts == 1


async def test_a_job_goes_on_where_it_was_when_the_service_comes_back(house: House, tmp_path: Path) -> None:
    slow = pb.Hyperparameters(max_steps=60, batch_size=2, max_sequence_tokens=128, save_steps=1)
    async with serve(house, tmp_path) as served:
        job = await served.create(await served.upload_examples(), hyperparameters=slow)
        await first_step(served, job)
        watch = served.watch(job)
        await anext(watch)
        pid = worker_pid()
        await served.server.stop(grace_s=5)
        with pytest.raises(ServiceDraining):
            _ = [event async for event in watch]
        assert not psutil.pid_exists(pid)
    async with serve(house, tmp_path) as served:
        events = [event async for event in served.watch(job)]
        job = await served.get(job)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert job.num_restarts == 1
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [event.checkpoint.step for event in events if event.HasField("checkpoint")]
    assert steps == list(range(1, 61)), "no step was done twice but the one that was lost"


async def test_a_checkpoint_that_was_named_but_not_told_is_told_when_the_job_goes_on(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, is_stopped = threading.Event(), threading.Event()
    commit = CheckpointFiles.commit

    def commit_and_hang(files: CheckpointFiles, job_id: str, draft: str) -> Checkpoint:
        checkpoint = commit(files, job_id, draft)
        named.set()
        is_stopped.wait(60)
        return checkpoint

    async with serve(house, tmp_path) as served:
        monkeypatch.setattr(CheckpointFiles, "commit", commit_and_hang)
        job = await served.create(await served.upload_examples(), hyperparameters=SHORT)
        assert await asyncio.to_thread(named.wait, 60)
        await served.server.stop(grace_s=0)
        is_stopped.set()
    monkeypatch.undo()
    async with serve(house, tmp_path) as served:
        events = [event async for event in served.watch(job)]
        job = await served.get(job)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert [event.checkpoint.step for event in events if event.HasField("checkpoint")] == [2, 4]


async def test_a_job_waits_for_a_registry_that_is_away(served: Served) -> None:
    served.house.registry.is_away = True
    job = await served.create(await served.upload_examples(), hyperparameters=SHORT)
    async for event in served.watch(job):
        if event.level == pb.EVENT_LEVEL_WARNING:
            served.house.registry.is_away = False
    assert (await served.get(job)).state == pb.JOB_STATE_SUCCEEDED


async def first_step(served: Served, job: pb.Job) -> None:
    """Wait until the job has told of a step."""
    async for event in served.watch(job):
        if event.HasField("progress"):
            return
