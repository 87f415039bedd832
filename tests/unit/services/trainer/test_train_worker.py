"""The real worker process on a tiny model: it trains, it can be killed at any moment, and nothing of it
shows in the end.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from services.kit.errors import InvalidArgument, InvalidDataset, WorkerLost
from services.trainer.adapters.checkpoint_files import CheckpointFiles
from services.trainer.adapters.train_worker import ProcessTrainWorker
from services.trainer.core.model import Checkpoint, DatasetFormat, Hyperparameters, JobSpec, Lora, Progress
from services.trainer.core.ports import DraftWritten, StepDone, TrainingTask
from services.trainer.settings import TrainerSettings
from tests.unit.services.trainer.tiny_model import write_examples

HYPERPARAMETERS = Hyperparameters(
    max_steps=8, batch_size=3, learning_rate=1e-2, max_sequence_tokens=128, save_steps=2, seed=7
)
# Dropout, so that the random generator is part of what must be resumed.
SPEC = JobSpec(
    "tiny", "dataset-1", adapter_id="a", lora=Lora(rank=4, dropout=0.1), hyperparameters=HYPERPARAMETERS
)


class Lab:
    """A task, and a worker to run it."""

    def __init__(self, root: Path, model: Path, name: str) -> None:
        self.checkpoints = CheckpointFiles(root / name)
        data = root / "data.jsonl"
        write_examples(data)
        self.task = TrainingTask(
            job_id="job-1",
            attempt=1,
            spec=SPEC,
            base_version="models/tiny/versions/1",
            model_folder=model,
            dataset_path=data,
            dataset_format=DatasetFormat.CHAT,
            num_examples=12,
            validation=None,
            checkpoint_folder=self.checkpoints.folder("job-1"),
            resume_from=None,
        )
        self.worker = ProcessTrainWorker(TrainerSettings(num_threads=1, micro_batch_tokens=64, niceness=0))

    async def train(
        self, *, until: Callable[[Progress], bool] = lambda _: False, spec: JobSpec | None = None
    ) -> list[Progress]:
        """Train on from the latest checkpoint; kill the worker after the step for which `until` holds."""
        self.checkpoints.clean("job-1")
        latest = self.checkpoints.latest("job-1")
        task = replace(
            self.task,
            attempt=self.task.attempt + 1,
            spec=spec or self.task.spec,
            resume_from=latest[1] if latest else None,
        )
        self.task = task
        steps = []
        async with contextlib.aclosing(self.worker.train(task)) as reports:
            async for report in reports:
                match report:
                    case StepDone(progress):
                        steps.append(progress)
                        if until(progress):
                            os.kill(worker_pid(), signal.SIGKILL)
                    case DraftWritten(draft):
                        self.checkpoints.commit("job-1", draft)
        return steps

    def result(self) -> tuple[Checkpoint, dict[str, Any]]:
        """The last checkpoint and its adapter's weights."""
        latest = self.checkpoints.latest("job-1")
        assert latest is not None
        return latest[0], load_file(latest[1] / "adapter_model.safetensors")


def worker_pid() -> int:
    """The one child process of this test that is a worker."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (pid,) = [int(c) for c in children if b"worker_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return pid


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Lab:
    return Lab(tmp_path, tiny_model, "lab")


async def test_a_run_ends_with_its_last_step_in_a_checkpoint(lab: Lab) -> None:
    steps = await lab.train()
    assert [progress.step for progress in steps] == list(range(1, 9))
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].eta_s == 0
    assert steps[-1].epoch == 2.0
    checkpoint, weights = lab.result()
    assert (checkpoint.step, checkpoint.is_last) == (8, True)
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in weights.items())
    assert [kept.step for kept in lab.checkpoints.list_checkpoints("job-1")] == [6, 8]


async def test_a_run_killed_at_three_random_steps_ends_with_the_weights_of_one_that_was_not(
    lab: Lab, tmp_path: Path, tiny_model: Path
) -> None:
    await lab.train()
    _, expected = lab.result()

    killed = Lab(tmp_path, tiny_model, "killed")
    rng = random.Random(20261121)
    for earliest in (1, 3, 5):
        victim = earliest + rng.randrange(2)
        with pytest.raises(WorkerLost):
            await killed.train(until=lambda progress, victim=victim: progress.step >= victim)  # type: ignore[misc]
    steps = await killed.train()
    assert steps[0].step > 1, "it went on from a checkpoint"
    _, weights = killed.result()
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert (weight - expected[name]).abs().max() <= 1e-6, name


async def test_the_adapter_names_its_base_version_and_no_path(lab: Lab) -> None:
    await lab.train(spec=replace(SPEC, hyperparameters=replace(HYPERPARAMETERS, max_steps=1)))
    latest = lab.checkpoints.latest("job-1")
    assert latest is not None
    config = (latest[1] / "adapter_config.json").read_text()
    assert '"models/tiny/versions/1"' in config
    assert str(lab.task.model_folder) not in config


async def test_a_cancelled_run_ends_its_process_within_five_seconds(lab: Lab) -> None:
    endless = replace(SPEC, hyperparameters=replace(HYPERPARAMETERS, max_steps=1_000_000, save_steps=10**6))
    started = asyncio.Event()

    def notice(progress: Progress) -> bool:
        started.set()
        return False

    run = asyncio.create_task(lab.train(until=notice, spec=endless))
    await started.wait()
    pid = worker_pid()
    run.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await run
    assert not psutil.pid_exists(pid)


async def test_a_worker_that_hangs_is_killed_and_reported_as_lost(lab: Lab) -> None:
    lab.worker = ProcessTrainWorker(TrainerSettings(num_threads=1, worker_silence_s=1.0))

    def freeze(progress: Progress) -> bool:
        os.kill(worker_pid(), signal.SIGSTOP)
        return False

    with pytest.raises(WorkerLost, match="said nothing"):
        await lab.train(until=freeze)


async def test_modules_that_the_model_does_not_have_are_refused_by_name(lab: Lab) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await lab.train(spec=replace(SPEC, lora=Lora(target_modules=("no_such_proj",))))
    assert caught.value.violations[0].field == "job.lora.target_modules"


async def test_data_with_nothing_left_to_learn_after_the_cut_is_refused(lab: Lab) -> None:
    short = replace(SPEC, hyperparameters=replace(HYPERPARAMETERS, max_sequence_tokens=8))
    with pytest.raises(InvalidDataset):
        await lab.train(spec=short)


async def test_validation_loss_is_measured_with_each_checkpoint(lab: Lab, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    write_examples(held_out, 3)
    lab.task = replace(lab.task, validation=(held_out, DatasetFormat.CHAT))
    steps = await lab.train()
    assert steps[0].validation_loss is None
    assert steps[1].validation_loss is not None
    assert steps[-1].validation_loss < steps[1].validation_loss  # type: ignore[operator]
