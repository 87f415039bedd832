from datetime import UTC, datetime

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.registry.v1 import registry_pb2
from services.downloader.core.download import (
    Download,
    DownloadPhase,
    DownloadState,
    Failure,
    FileProgress,
    changed_files,
)
from services.downloader.core.ids import as_id, new_id
from services.downloader.core.models import Capability, Format, ModelKind
from services.downloader.core.progress import Speed, eta_s
from services.kit.errors import JobFinished
from services.kit.names import parse_id

NOW = datetime(2026, 11, 21, tzinfo=UTC)
QUEUED = Download("d", "pypi:x", "x", NOW)
RUNNING = QUEUED.started(NOW)


def test_of_many_files_only_those_that_changed_are_told_again() -> None:
    before = (FileProgress("a", 1, 3), FileProgress("b", 2, 3))
    now = (before[0], FileProgress("b", 3, 3))
    assert changed_files((), before) == before
    assert changed_files(before, now) == [now[1]]
    assert changed_files(before, before[:1]) == before[:1]


def test_a_download_runs_through_its_phases_to_success() -> None:
    fetching = RUNNING.in_phase(DownloadPhase.FETCHING)
    done = fetching.succeeded("models/x/versions/1", NOW)
    assert (RUNNING.state, fetching.phase) == (DownloadState.RUNNING, DownloadPhase.FETCHING)
    assert (done.state, done.phase, done.end_time) == (
        DownloadState.SUCCEEDED,
        DownloadPhase.UNSPECIFIED,
        NOW,
    )


def test_what_has_ended_can_be_neither_paused_nor_cancelled() -> None:
    failed = RUNNING.failed(Failure("X", "y"), NOW)
    for ended in (RUNNING.succeeded("v", NOW), failed, RUNNING.cancelled(NOW)):
        with pytest.raises(JobFinished):
            ended.paused()
        with pytest.raises(JobFinished):
            ended.cancelled(NOW)


def test_all_that_has_not_succeeded_can_be_resumed() -> None:
    for stopped in (RUNNING.paused(), RUNNING.failed(Failure("X", "y"), NOW), RUNNING.cancelled(NOW)):
        again = stopped.queued()
        assert (again.state, again.failure, again.end_time) == (DownloadState.QUEUED, None, None)
    assert RUNNING.queued() is RUNNING
    with pytest.raises(JobFinished):
        RUNNING.succeeded("v", NOW).queued()


def test_the_total_is_unknown_until_every_file_tells_its_size() -> None:
    files = (FileProgress("a", 3, 10), FileProgress("b", 4, None))
    download = Download("d", "s", "m", NOW, files=files)
    assert (download.completed_bytes, download.total_bytes) == (7, None)
    assert QUEUED.total_bytes is None


def test_enums_have_the_numbers_of_the_contract() -> None:
    pairs = [
        (DownloadState, pb.DownloadState, "DOWNLOAD_STATE_"),
        (DownloadPhase, pb.DownloadPhase, "DOWNLOAD_PHASE_"),
        (ModelKind, registry_pb2.ModelKind, "MODEL_KIND_"),
        (Capability, registry_pb2.Capability, "CAPABILITY_"),
        (Format, registry_pb2.Format, "FORMAT_"),
    ]
    for ours, theirs, prefix in pairs:
        assert {f"{prefix}{value.name}": value.value for value in ours} == dict(theirs.items())


def test_speed_is_that_of_the_last_seconds() -> None:
    speed = Speed()
    assert speed.sample(0.0, 0) == 0
    assert speed.sample(1.0, 1000) == 1000
    for second in range(2, 20):
        rate = speed.sample(float(second), 1000 + (second - 1) * 50)
    assert rate == 50
    assert speed.sample(20.0, 0) == 0, "a file that is begun anew"


def test_the_time_left_is_known_once_size_and_speed_are() -> None:
    assert eta_s(50, 100, 10) == 5.0
    assert eta_s(50, None, 10) is None
    assert eta_s(50, 100, 0) is None


def test_ids_sort_by_time_and_are_spelled_as_ids() -> None:
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(parse_id(each) for each in ids)
    assert [each[:10] for each in ids] == sorted(each[:10] for each in ids)


def test_any_text_becomes_an_id_or_nothing() -> None:
    assert as_id("1.0.0+cu121") == "1.0.0-cu121"
    assert as_id("../..") == ""
    assert len(as_id("x" * 500)) == 128
