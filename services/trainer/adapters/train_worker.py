"""The training worker as the service sees it: a child process for each attempt at a job."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from services.kit.unbroken import see_through
from services.kit.worker import Worker, WorkerCall, WorkerSpec
from services.trainer.adapters.train_messages import (
    Alive,
    Begin,
    DataFile,
    Drafted,
    Remarked,
    Stepped,
    TrainEvent,
    TrainInit,
)
from services.trainer.core.model import DatasetFormat
from services.trainer.core.ports import DraftWritten, Remark, Report, StepDone, TrainingTask
from services.trainer.core.spec import total_steps
from services.trainer.settings import TrainerSettings

# Short of the five seconds that CancelJob promises; a worker notices within a micro-batch.
_STOP_GRACE_S: Final = 2.0


class ProcessTrainWorker:
    """The TrainWorker port over the kit's worker harness."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    async def train(self, task: TrainingTask) -> AsyncGenerator[Report, None]:
        """As TrainWorker.train. A worker that is silent too long is taken for dead and killed."""
        worker: Worker[Begin, TrainEvent] = await Worker.start(self._spec(task))
        try:
            async with worker.call(Begin()) as call:
                while (event := await self._next(worker, call)) is not None:
                    match event:
                        case Stepped(progress):
                            yield StepDone(progress)
                        case Drafted(draft):
                            yield DraftWritten(draft)
                        case Remarked(message):
                            yield Remark(message)
                        case Alive():
                            pass
        finally:
            # A second cancellation, while the first closes us, must not leave a process behind.
            await see_through(worker.stop(_STOP_GRACE_S))

    async def _next(
        self, worker: Worker[Begin, TrainEvent], call: WorkerCall[Begin, TrainEvent]
    ) -> TrainEvent | None:
        try:
            async with asyncio.timeout(self._settings.worker_silence_s):
                return await anext(call, None)
        except TimeoutError:
            await worker.kill(f"said nothing for {self._settings.worker_silence_s:g} s")
            raise (await worker.wait_dead()) from None

    def _spec(self, task: TrainingTask) -> WorkerSpec[Begin, TrainEvent]:
        settings = self._settings
        init = TrainInit(
            attempt=task.attempt,
            spec=task.spec,
            base_version=task.base_version,
            model_folder=str(task.model_folder),
            dataset=_data_file((task.dataset_path, task.dataset_format)),
            validation=_data_file(task.validation) if task.validation else None,
            total_steps=total_steps(task.spec.hyperparameters, task.num_examples),
            checkpoint_folder=str(task.checkpoint_folder),
            resume_from=str(task.resume_from) if task.resume_from else None,
            num_threads=settings.num_threads,
            niceness=settings.niceness,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        return WorkerSpec(
            name=task.job_id,
            target="services.trainer.adapters.lora_worker:main",
            init=init,
            events=TrainEvent,
            ready_timeout_s=settings.load_timeout_s,
        )


def _data_file(file: tuple[Path, DatasetFormat]) -> DataFile:
    path, form = file
    return DataFile(str(path), form)
