"""`lares train` and `lares jobs`: teaching a model with your own data."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli import console
from cli.client import Client
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit.errors import LaresError, error_class

CHUNK_BYTES = 256 * 1024

jobs_app = typer.Typer(help="List, follow and cancel fine-tuning jobs.", invoke_without_command=True)

JobName = Annotated[str, typer.Argument(help="The job, as `lares jobs` prints it.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("train")(train)
    app.add_typer(jobs_app, name="jobs")


def train(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Served name of the model to teach.")],
    data: Annotated[
        Path,
        typer.Argument(
            help='Examples, one JSON object a line: {"messages": [...]}, {"prompt", "completion"},'
            ' {"instruction", "output"} or {"text"}.',
            exists=True,
            dir_okay=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the adapter: it is served as MODEL:NAME.")] = "",
    validation: Annotated[
        Path | None,
        typer.Option(help="Examples to measure on, of the same form.", exists=True, dir_okay=False),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. Default 1.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, whatever the epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step. Default 4.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate. Default 2e-4.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter. Default 8.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a training.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")] = False,
    as_json: console.Json = False,
) -> None:
    """Teach a model with a LoRA adapter, which answers as MODEL:NAME at once when it is done.

    Ctrl-C leaves the job running; `lares jobs cancel` ends it.
    """
    job = pb.Job(base_model=model, adapter_id=name)
    knobs = {
        "num_epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    for knob, value in knobs.items():
        if value is not None:
            setattr(job.hyperparameters, knob, value)
    if rank is not None:
        job.lora.rank = rank

    async def work(client: Client) -> None:
        job.dataset = await _upload(client, data)
        if validation is not None:
            job.validation_dataset = await _upload(client, validation)
        created = (await client.trainer.CreateJob(pb.CreateJobRequest(job=job))).job
        await _report(
            client, created if detach else await _follow(client, created.name, quiet=as_json), as_json
        )

    console.run(ctx, work)


@jobs_app.callback()
def jobs(ctx: typer.Context, as_json: console.Json = False) -> None:
    """List the jobs, newest first."""
    if ctx.invoked_subcommand is not None:
        return

    async def work(client: Client) -> None:
        found = [job async for job in _all_jobs(client)]
        if as_json:
            console.print_json([console.to_json(job) for job in found])
            return
        rows = (
            [
                job.name.removeprefix("jobs/"),
                job.base_model,
                console.enum_text(job, "state"),
                f"{job.progress.step}/{job.progress.total_steps}" if job.progress.total_steps else "",
                f"{job.progress.loss:.3f}" if job.progress.step else "",
                job.served_name or job.failure.message,
            ]
            for job in found
        )
        console.print_table(
            ("JOB", "MODEL", "STATE", "STEP", "LOSS", "RESULT"),
            rows,
            empty="no jobs yet: `lares train MODEL DATA` starts one",
        )

    console.run(ctx, work)


@jobs_app.command("watch")
def watch(ctx: typer.Context, job: JobName, as_json: console.Json = False) -> None:
    """Follow a job until it ends. Ctrl-C leaves it running."""

    async def work(client: Client) -> None:
        await _report(client, await _follow(client, _job_name(job), quiet=as_json), as_json)

    console.run(ctx, work)


@jobs_app.command("cancel")
def cancel(ctx: typer.Context, job: JobName, as_json: console.Json = False) -> None:
    """End a job."""

    async def work(client: Client) -> None:
        cancelled = (await client.trainer.CancelJob(pb.CancelJobRequest(name=_job_name(job)))).job
        await _report(client, cancelled, as_json)

    console.run(ctx, work)


def _job_name(job: str) -> str:
    return job if job.startswith("jobs/") else f"jobs/{job}"


async def _upload(client: Client, file: Path) -> str:
    async def parts() -> AsyncIterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(header=pb.DatasetHeader(file_name=file.name))
        with file.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                yield pb.CreateDatasetRequest(chunk=chunk)

    return (await client.trainer.CreateDataset(parts())).dataset.name


async def _follow(client: Client, name: str, *, quiet: bool) -> pb.Job:
    """Show a job's progress until it ends, and return it as it ended."""
    call = client.trainer.WatchJob(pb.WatchJobRequest(name=name))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console.err, disable=quiet) as progress:
            task = progress.add_task("training", total=None, facts="waiting")
            async for response in call:
                event = response.event
                if event.WhichOneof("detail") == "progress":
                    at = event.progress
                    left = f", {at.eta.seconds} s left" if at.HasField("eta") else ""
                    progress.update(
                        task,
                        completed=at.step,
                        total=at.total_steps or None,
                        facts=f"loss {at.loss:.3f}, {at.tokens_per_second:.0f} tokens/s{left}",
                    )
                else:
                    progress.update(task, facts=event.message)
    except asyncio.CancelledError:
        console.err.print(
            f"the job goes on: `lares jobs watch {name.removeprefix('jobs/')}` follows it, `lares jobs cancel` ends it"
        )
        raise
    finally:
        call.cancel()
    return (await client.trainer.GetJob(pb.GetJobRequest(name=name))).job


async def _report(client: Client, job: pb.Job, as_json: bool) -> None:
    """Say how a job stands. Raises what it failed of."""
    if as_json:
        console.print_json(console.to_json(job))
    if job.state == pb.JOB_STATE_FAILED:
        raise (error_class(job.failure.reason) or LaresError)(job.failure.message)
    if as_json:
        return
    short = job.name.removeprefix("jobs/")
    if job.state == pb.JOB_STATE_SUCCEEDED:
        console.out.print(f"[green]✓[/] {job.served_name} answers now: lares chat --model {job.served_name}")
    else:
        console.out.print(
            f"job {short} is {console.enum_text(job, 'state')}: `lares jobs watch {short}` follows it"
        )


async def _all_jobs(client: Client) -> AsyncIterator[pb.Job]:
    request = pb.ListJobsRequest(page_size=1000)
    while True:
        page = await client.trainer.ListJobs(request)
        for job in page.jobs:
            yield job
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
