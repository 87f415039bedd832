"""Models, files and fine-tuning jobs."""

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from lares.trainer.v1 import trainer_pb2 as pb
from tests.unit.gateway.fake_services import FakeServices

LINES = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'


async def test_models_and_their_adapters_are_listed(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["tiny", "tiny:pirate"]
    assert models[0].owned_by == "pypi"
    details = models[1].model_dump()["lares"]
    assert details["base_model"] == "tiny"
    assert details["kind"] == "text_generation"
    assert details["capabilities"] == ["chat"]


async def test_one_model_is_told_of(client: AsyncOpenAI) -> None:
    assert (await client.models.retrieve("tiny")).id == "tiny"
    assert (await client.models.retrieve("tiny:pirate")).id == "tiny:pirate"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_an_adapter_can_be_deleted_and_a_base_model_cannot(client: AsyncOpenAI) -> None:
    assert (await client.models.delete("tiny:pirate")).deleted
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("tiny:pirate")
    with pytest.raises(openai.ConflictError, match="lares rm tiny"):
        await client.models.delete("tiny")


async def test_a_file_comes_in_is_listed_read_and_deleted(client: AsyncOpenAI) -> None:
    made = await client.files.create(file=("../../train.jsonl", LINES), purpose="fine-tune")
    assert made.id == "file-d1"
    assert made.filename == "train.jsonl"
    assert made.bytes == len(LINES)
    second = await client.files.create(file=("b.jsonl", LINES), purpose="fine-tune")
    assert [file.id async for file in client.files.list(limit=1)] == [second.id, made.id]
    assert [file.id async for file in client.files.list(order="asc")] == [made.id, second.id]
    assert (await client.files.retrieve(made.id)).id == made.id
    assert (await client.files.content(made.id)).content == LINES
    assert (await client.files.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)


async def test_a_file_that_teaches_nothing_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.files.create(file=("x", b"hello"), purpose="fine-tune")
    assert raised.value.code == "invalid_dataset"
    with pytest.raises(openai.BadRequestError) as raised:
        await client.files.create(file=("x", LINES), purpose="assistants")
    assert raised.value.param == "purpose"


@pytest.mark.parametrize("file_id", ["d1", "file-", "file-..", "file-%2e%2e%2fx", "nope"])
async def test_what_is_no_id_of_a_file_is_a_404(http: httpx2.AsyncClient, file_id: str) -> None:
    assert (await http.get(f"/v1/files/{file_id}")).status_code == 404


async def test_a_job_is_made_followed_and_cancelled(client: AsyncOpenAI, services: FakeServices) -> None:
    file = await client.files.create(file=("t.jsonl", LINES), purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        suffix="Parrot",
        seed=7,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
        },
        metadata={"who": "me"},
        extra_body={"lares": {"max_steps": 20, "rank": 4}},
    )
    asked = services.trainer.jobs["jobs/j1"]
    assert asked.adapter_id == "parrot"
    assert asked.lora.rank == 4
    assert asked.hyperparameters.max_steps == 20
    assert asked.hyperparameters.learning_rate == pytest.approx(1e-4)
    assert not asked.hyperparameters.HasField("batch_size")
    assert (job.id, job.status, job.training_file) == ("ftjob-j1", "queued", "file-d1")
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert job.metadata == {"who": "me"}

    assert [found.id async for found in client.fine_tuning.jobs.list(limit=1)] == ["ftjob-j1"]
    events = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
    assert [event.message for event in events] == ["step 1 of 20", "the job began"]
    assert events[0].type == "metrics"
    checkpoints = await client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoints.data[0].step_number == 10

    assert (await client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        await client.fine_tuning.jobs.cancel(job.id)


async def test_how_a_job_ended_is_told(client: AsyncOpenAI, services: FakeServices) -> None:
    job = pb.Job(name="jobs/j1", base_model="tiny", dataset="datasets/d1", state=pb.JOB_STATE_SUCCEEDED)
    job.served_name = "tiny:parrot"
    job.progress.num_tokens = 99
    job.end_time.FromSeconds(1_790_000_100)
    services.trainer.jobs[job.name] = job
    done = await client.fine_tuning.jobs.retrieve("ftjob-j1")
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "tiny:parrot", 99)
    assert done.finished_at == 1_790_000_100

    job.state = pb.JOB_STATE_FAILED
    job.failure.reason, job.failure.message = "INSUFFICIENT_MEMORY", "needs 3 GiB, has 2"
    failed = await client.fine_tuning.jobs.retrieve("ftjob-j1")
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "insufficient_memory")


@pytest.mark.parametrize(
    ("extra", "status", "param"),
    [
        ({"training_file": "file-d9"}, 404, None),
        ({"training_file": "nope"}, 404, None),
        ({"suffix": "a b"}, 400, "suffix"),
        ({"hyperparameters": {"batch_size": 0}}, 400, "hyperparameters.batch_size"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"integrations": [{"type": "wandb"}]}, 400, "integrations"),
        ({"lares": {"rank": 1000}}, 400, "lares.rank"),
    ],
)
async def test_a_bad_job_is_refused(
    http: httpx2.AsyncClient, extra: dict[str, object], status: int, param: str | None
) -> None:
    await http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t", LINES)})
    answer = await http.post(
        "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": "file-d1"} | extra
    )
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_a_page_after_nothing_known_is_refused(http: httpx2.AsyncClient) -> None:
    for query, param in (("after=x", "after"), ("limit=0", "limit"), ("limit=x", "limit")):
        answer = await http.get(f"/v1/fine_tuning/jobs?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
