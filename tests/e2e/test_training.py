"""A model learns from a real instruction file, and what it learned answers at once: over gRPC, HTTP, by command."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import openai

from lares.trainer.v1 import trainer_pb2 as pb
from lares.trainer.v1 import trainer_pb2_grpc as rpc
from tests.e2e.conftest import STARTER, House

STEPS = 20


def test_lora_job_over_http_makes_a_model_that_answers_at_once(house: House, lessons: Path) -> None:
    client = openai.OpenAI(base_url=house.url, api_key="none", max_retries=0)
    with lessons.open("rb") as data:
        uploaded = client.files.create(file=data, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=STARTER,
        training_file=uploaded.id,
        suffix="over-http",
        seed=1,
        extra_body={"lares": {"max_steps": STEPS, "batch_size": 2, "max_sequence_tokens": 64}},
    )
    assert job.id in [one.id for one in client.fine_tuning.jobs.list()]
    deadline = time.monotonic() + 300
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.5)  # OpenAI's API has no way but to ask again.
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert any("loss" in event.message for event in events)

    tuned = job.fine_tuned_model
    assert tuned is not None
    assert tuned.startswith(f"{STARTER}:")
    assert tuned in [model.id for model in client.models.list()]

    def answer(model: str) -> str:
        done = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is chemistry?"}],
            temperature=0,
            max_tokens=24,
        )
        return done.choices[0].message.content or ""

    assert answer(tuned) != answer(STARTER)


async def test_lora_job_over_grpc_streams_its_progress(house: House, lessons: Path) -> None:
    def parts() -> Iterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(header=pb.DatasetHeader(file_name="lessons.jsonl"))
        yield pb.CreateDatasetRequest(chunk=lessons.read_bytes())

    async with house.channel() as channel:
        trainer = rpc.TrainerServiceStub(channel)
        dataset = (await trainer.CreateDataset(parts(), timeout=60)).dataset
        assert dataset.num_examples == 120
        knobs = pb.Hyperparameters(max_steps=STEPS, batch_size=2, max_sequence_tokens=64, save_steps=10)
        asked = pb.Job(
            base_model=STARTER, dataset=dataset.name, adapter_id="over-grpc", hyperparameters=knobs
        )
        job = (await trainer.CreateJob(pb.CreateJobRequest(job=asked), timeout=60)).job
        events = [
            response.event
            async for response in trainer.WatchJob(pb.WatchJobRequest(name=job.name), timeout=300)
        ]
        job = (await trainer.GetJob(pb.GetJobRequest(name=job.name), timeout=60)).job
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [event.progress for event in events if event.WhichOneof("detail") == "progress"]
    assert steps[-1].step == STEPS
    assert steps[-1].tokens_per_second > 0
    # One step's loss is mostly its examples; the means over the job's ends tell what was learned.
    assert fmean(at.loss for at in steps[-5:]) < fmean(at.loss for at in steps[:5])
    assert any(event.WhichOneof("detail") == "checkpoint" for event in events)
    assert "over-grpc" in house.json("rm", STARTER, "--dry-run")["removed"][0]["adapters"]
    assert (
        house.json("chat", "What is chemistry?", "--model", job.served_name, "--max-tokens", "8")["version"]
        == job.result_version
    )


def test_command_trains_and_cancels(house: House, lessons: Path) -> None:
    started = house.json(
        "train", STARTER, str(lessons), "--name", "by-command", "--max-steps", "5000", "--detach"
    )
    name = started["name"].removeprefix("jobs/")
    cancelled = house.json("jobs", "cancel", name)
    assert cancelled["state"] == "JOB_STATE_CANCELLED"
    assert house.lares("jobs", "cancel", name, check=False).returncode == 1
    assert f"{STARTER}:by-command" not in house.lares("list").stdout


def test_bad_dataset_is_refused_with_its_line(house: House, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n')
    done = house.lares("train", STARTER, str(bad), check=False)
    assert done.returncode == 1
    assert "line 2" in done.stderr
