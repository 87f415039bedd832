"""The training worker: LoRA by a loop of our own on torch and peft. Runs in a child process.

Not trl's SFTTrainer: what a library's trainer hides is what this loop is about, that a run which was killed
and resumed ends with the very weights of one that was not, that a checkpoint is whole or is none, and that a
cancelled job stops between two micro-batches.
"""

import os
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Final

import torch

from services.kit.errors import LaresError
from services.kit.worker_port import WorkerPort
from services.trainer.adapters.checkpoint_files import draft_name, seal
from services.trainer.adapters.durable import DiskFullOnWrite
from services.trainer.adapters.lora_data import (
    Encoded,
    ExampleEncoder,
    Examples,
    batch_indices,
    micro_batches,
)
from services.trainer.adapters.lora_model import LoraModel, choose_dtype
from services.trainer.adapters.lora_state import RunState, read_numbers, restore_state, trainable, write_state
from services.trainer.adapters.train_messages import (
    Alive,
    Begin,
    Drafted,
    Remarked,
    Stepped,
    TrainEvent,
    TrainInit,
)
from services.trainer.core.model import Progress
from services.trainer.core.schedule import learning_rate

_MAX_GRADIENT_NORM: Final = 1.0
_VALIDATION_EXAMPLES: Final = 512
_SPEED_WINDOW: Final = 20
_ALIVE_S: Final = 1.0


def main(init: TrainInit, port: WorkerPort[Begin, TrainEvent]) -> None:
    """Load, then train once, on the one call that comes."""
    if hasattr(os, "nice"):
        os.nice(init.niceness)
    torch.set_num_threads(init.num_threads or os.cpu_count() or 1)
    run = TrainingRun(init, port)
    port.ready()
    opened = next(iter(port.receive()), None)
    if opened is None:
        return
    try:
        run.train(opened.call_id)
    except Cancelled:
        return
    except LaresError as error:
        port.fail(opened.call_id, error)
    else:
        port.finish(opened.call_id)
    port.receive()  # Until the service has read it all and says stop.


class Cancelled(Exception):
    """Nobody wants the result any more."""


class TrainingRun:
    """A model, its data and its optimizer, at some step."""

    def __init__(self, init: TrainInit, port: WorkerPort[Begin, TrainEvent]) -> None:
        self._init = init
        self._given = init.spec.hyperparameters
        self._port = port
        self._call_id = 0
        self._resume_from = Path(init.resume_from) if init.resume_from else None
        earlier = read_numbers(self._resume_from) if self._resume_from else None
        dtype = earlier.dtype if earlier else choose_dtype(Path(init.model_folder))
        self._state = earlier or RunState(step=0, num_tokens=0, dtype=dtype, validation_loss=None)
        self._model = LoraModel(Path(init.model_folder), init.spec, dtype)
        self._parameters = [parameter for _, parameter in trainable(self._model.peft)]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self._given.learning_rate, weight_decay=0.0)
        encoder = ExampleEncoder(self._model.tokenizer, max_tokens=self._given.max_sequence_tokens)
        self._examples = Examples(init.dataset, encoder)
        self._examples.probe()
        self._validation = Examples(init.validation, encoder) if init.validation else None
        if self._resume_from:
            restore_state(self._resume_from, self._model.peft, self._optimizer)
        self._recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)
        self._spoke_at = 0.0

    def train(self, call_id: int) -> None:
        """To the last step; its checkpoint is the result. Raises Cancelled, DiskFull."""
        self._call_id = call_id
        if self._state.dtype != "float32":
            self._send(Remarked(f"training in {self._state.dtype}: memory is short for float32"))
        self._model.peft.train()
        while self._state.step < self._init.total_steps:
            self._step()

    def _step(self) -> None:
        started, step = time.monotonic(), self._state.step
        loss, num_targets = self._learn(
            self._batch(step), learning_rate(step, self._init.total_steps, self._given)
        )
        done = step + 1
        is_last = done == self._init.total_steps
        saves = is_last or done % self._given.save_steps == 0
        self._state = RunState(
            step=done,
            num_tokens=self._state.num_tokens + num_targets,
            dtype=self._state.dtype,
            validation_loss=self._validate() if saves and self._validation else self._state.validation_loss,
        )
        self._recent.append((time.monotonic() - started, num_targets))
        self._send(Stepped(self._progress(loss)))
        if saves:
            self._save(loss, is_last=is_last)

    def _batch(self, step: int) -> list[Encoded]:
        indices = batch_indices(len(self._examples), self._given.batch_size, step, self._given.seed)
        before = self._examples.num_passed_over
        batch = [encoded for index in indices if (encoded := self._examples.read(index))]
        if before == 0 < self._examples.num_passed_over:
            self._send(Remarked("examples with nothing to learn within max_sequence_tokens are passed over"))
        return batch

    def _learn(self, batch: list[Encoded], rate: float) -> tuple[float, int]:
        """One optimizer step. Returns the mean loss in nats a token, and the number of tokens."""
        num_targets = sum(example.num_targets for example in batch)
        if num_targets == 0:
            return 0.0, 0
        total = 0.0
        for part in micro_batches(batch, self._init.micro_batch_tokens):
            self._stay_alive()
            loss = self._model.loss_sum(part)
            (loss / num_targets).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total / num_targets, num_targets

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Mean loss on the first validation examples, in nats a token; None if they teach nothing."""
        assert self._validation is not None
        self._model.peft.eval()
        total, num_targets = 0.0, 0
        for index in range(min(_VALIDATION_EXAMPLES, len(self._validation))):
            if encoded := self._validation.read(index):
                self._stay_alive()
                (part,) = micro_batches([encoded], self._init.micro_batch_tokens)
                total += self._model.loss_sum(part).item()
                num_targets += encoded.num_targets
        self._model.peft.train()
        return total / num_targets if num_targets else None

    def _progress(self, loss: float) -> Progress:
        step, total_steps = self._state.step, self._init.total_steps
        spent_s = sum(seconds for seconds, _ in self._recent)
        num_tokens = sum(tokens for _, tokens in self._recent)
        return Progress(
            step=step,
            total_steps=total_steps,
            epoch=step * self._given.batch_size / len(self._examples),
            loss=loss,
            learning_rate=learning_rate(step - 1, total_steps, self._given),
            tokens_per_second=num_tokens / spent_s,
            num_tokens=self._state.num_tokens,
            eta_s=(total_steps - step) * spent_s / len(self._recent),
            validation_loss=self._state.validation_loss,
        )

    def _save(self, loss: float, *, is_last: bool) -> None:
        name = draft_name(self._init.attempt, self._state.step)
        draft = Path(self._init.checkpoint_folder) / name
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with DiskFullOnWrite(draft):
                draft.mkdir()
                write_state(draft, self._model.peft, self._optimizer, self._state, self._init.base_version)
            seal(draft, step=self._state.step, loss=loss, is_last=is_last)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._send(Drafted(name))

    def _send(self, event: TrainEvent) -> None:
        self._spoke_at = time.monotonic()
        self._port.send([(self._call_id, event)])

    def _stay_alive(self) -> None:
        """Between two micro-batches: heed a cancel, and say that we live."""
        if self._port.closed or any(incoming.kind == "cancel" for incoming in self._port.receive(0)):
            raise Cancelled
        if time.monotonic() - self._spoke_at > _ALIVE_S:
            self._send(Alive())
