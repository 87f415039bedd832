"""`lares load`, `unload`, `ps`: what is in memory."""

import contextlib
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cli import console
from cli.client import Client
from lares.inference.v1 import inference_pb2 as pb
from lares.speech.v1 import speech_pb2
from services.kit.channels import translate_errors
from services.kit.durations import duration_to_proto
from services.kit.errors import InvalidArgument, NotFound, Unavailable, Unsupported


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    for command in (load, unload, ps):
        app.command()(command)


def load(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model, as `lares list` names it.")],
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long it stays unused: seconds, 5m, 1h; -1 keeps it. Default: the setting.",
        ),
    ] = "",
    quantization: Annotated[
        str,
        typer.Option(metavar="NUMBERS", help="auto, bf16, fp16, fp32, int8 or int4. Default: the setting."),
    ] = "",
    as_json: console.Json = False,
) -> None:
    """Bring a language or embedding model into memory, and wait until it answers.

    Ctrl-C stops the waiting; the model goes on loading until `lares unload` says otherwise.
    """

    async def work(client: Client) -> None:
        request = pb.LoadModelRequest(model=name, quantization=quantization, keep_alive=_duration(keep_alive))
        loaded = await load_model(client, request, quiet=as_json)
        if as_json:
            console.print_json(console.to_json(loaded))
            return
        where = f"{loaded.device} in {loaded.dtype}, {console.size_text(loaded.memory_bytes)}"
        console.out.print(f"{_short(loaded.name)} is in memory: {where}", markup=False)
        if loaded.note:
            console.err.print(loaded.note, markup=False)

    console.run(ctx, work)


def unload(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model, as `lares ps` names it.")],
    force: Annotated[
        bool, typer.Option("--force", help="At once: requests that it is answering fail.")
    ] = False,
) -> None:
    """Take a model out of memory when its requests have ended, and return when it is gone."""

    async def work(client: Client) -> None:
        try:
            with translate_errors():
                await client.inference.UnloadModel(
                    pb.UnloadModelRequest(name=f"loadedModels/{name}", force=force)
                )
        except NotFound:
            # Speech has models in memory, too. If it has not this one, the first answer says what is wrong.
            if not await unload_recognizer(client, name):
                raise
        console.out.print(f"{name} is out of memory", markup=False)

    console.run(ctx, work)


def ps(ctx: typer.Context, as_json: console.Json = False) -> None:
    """List the models that are in memory."""

    async def work(client: Client) -> None:
        loaded = (
            await client.inference.ListLoadedModels(pb.ListLoadedModelsRequest(page_size=1000))
        ).loaded_models
        recognizers = (
            await client.speech.ListRecognizers(speech_pb2.ListRecognizersRequest(page_size=1000))
        ).recognizers
        if as_json:
            console.print_json(
                {
                    "loaded_models": [console.to_json(model) for model in loaded],
                    "recognizers": [console.to_json(recognizer) for recognizer in recognizers],
                }
            )
            return
        rows = [
            [
                _short(model.name),
                console.enum_text(model, "state"),
                f"{model.device} {model.dtype}".strip(),
                console.size_text(model.memory_bytes),
                str(model.num_active_requests),
                str(model.worker_pid or ""),
            ]
            for model in loaded
        ]
        rows += [
            [
                _short(recognizer.name),
                "ready",
                recognizer.device,
                console.size_text(recognizer.memory_bytes),
                str(recognizer.num_active_requests),
                str(recognizer.worker_pid or ""),
            ]
            for recognizer in recognizers
        ]
        console.print_table(
            ("NAME", "STATE", "DEVICE", "MEMORY", "ACTIVE", "PID"),
            rows,
            empty="no model is in memory: the first request loads one",
        )

    console.run(ctx, work)


async def load_model(client: Client, request: pb.LoadModelRequest, *, quiet: bool) -> pb.LoadedModel:
    """Load with a progress bar, and return the model once it answers. Raises Unavailable if it does not come up."""
    # Watched from before it begins: a load may be over, well or badly, before its answer is here.
    watch = client.inference.WatchLoadedModels(pb.WatchLoadedModelsRequest())
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console.err,
        disable=quiet,
        transient=True,
    )
    try:
        with translate_errors():
            await watch.initial_metadata()
            model = (await client.inference.LoadModel(request)).loaded_model
            if model.state == pb.LOADED_MODEL_STATE_READY:
                return model
            with progress:
                task = progress.add_task(f"loading {_short(model.name)}", total=1.0)
                async for change in watch:
                    if change.loaded_model.name != model.name:
                        continue
                    match change.loaded_model.state:
                        case pb.LOADED_MODEL_STATE_READY:
                            return change.loaded_model
                        case pb.LOADED_MODEL_STATE_LOADING:
                            progress.update(task, completed=change.loaded_model.load_progress)
                        case _:
                            why = change.loaded_model.failure_message or "it was unloaded meanwhile"
                            raise Unavailable(f"{_short(model.name)} is not in memory: {why}")
        raise Unavailable("the service stopped telling how the load goes; `lares ps` shows how it stands")
    finally:
        watch.cancel()


async def unload_recognizer(client: Client, name: str) -> bool:
    """Take a model of Speech out of memory. Returns whether it was there."""
    with contextlib.suppress(NotFound, Unavailable, Unsupported), translate_errors():
        await client.speech.UnloadRecognizer(speech_pb2.UnloadRecognizerRequest(name=f"recognizers/{name}"))
        return True
    return False


def _duration(text: str) -> Duration | None:
    try:
        return duration_to_proto(text) if text else None
    except ValueError as error:
        raise InvalidArgument.at("keep-alive", str(error)) from error


def _short(name: str) -> str:
    """`loadedModels/x` is x to a person."""
    return name.partition("/")[2]
