"""`lares df`, `gc`, `cleanup`, `validate`: the care of the bytes that are here."""

from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.progress import (
    Progress,
    TaskID,
    TextColumn,
)

from cli import console
from cli.client import Client
from lares.downloader.v1 import downloader_pb2 as pb
from services.kit.names import ServedName, model_name, version_name


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    for command in (df, gc, cleanup, validate):
        app.command()(command)


def df(
    ctx: typer.Context,
    num_models: Annotated[
        int, typer.Option("--models", min=1, max=1000, help="How many of the largest models to list.")
    ] = 10,
    as_json: console.Json = False,
) -> None:
    """Say what the store holds, and what more would fit."""

    async def work(client: Client) -> None:
        usage = await client.downloader.GetStoreUsage(pb.GetStoreUsageRequest(num_models=num_models))
        if as_json:
            console.print_json(console.to_json(usage))
            return
        parts = (
            ("blobs of models", usage.referenced),
            ("other blobs", usage.unreferenced),
            ("on their way", usage.partial),
            ("views", usage.views),
            ("quarantine", usage.quarantine),
        )
        console.print_table(
            ("WHAT", "COUNT", "SIZE"),
            ([label, str(share.count), console.size_text(share.size_bytes)] for label, share in parts),
            empty="",
        )
        limit = (
            f"of {console.size_text(usage.max_store_bytes)}"
            if usage.HasField("max_store_bytes")
            else "without a limit"
        )
        console.out.print(
            f"used: {console.size_text(usage.used_bytes)} {limit}; {console.size_text(usage.free_bytes)} free on a"
            f" disk of {console.size_text(usage.disk_bytes)}, {console.size_text(usage.min_free_bytes)} of it reserved"
        )
        console.print_table(
            ("MODEL", "VERSIONS", "SIZE", "SHARED"),
            (
                [
                    each.model.removeprefix("models/"),
                    str(each.num_versions),
                    console.size_text(each.size_bytes),
                    console.size_text(each.shared_bytes),
                ]
                for each in usage.models
            ),
            empty="no models yet",
        )

    console.run(ctx, work)


def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go, and why.")] = False,
    as_json: console.Json = False,
) -> None:
    """Free what nothing needs: unreferenced blobs, leftovers of downloads, unused views."""

    async def work(client: Client) -> None:
        swept = await client.downloader.CollectGarbage(pb.CollectGarbageRequest(dry_run=dry_run))
        if as_json:
            console.print_json({"dry_run": dry_run, **console.to_json(swept)})
            return
        if swept.items:
            console.print_table(
                ("WHAT", "SIZE", "AGE", "WHY"),
                (
                    [
                        item.name[:32],
                        console.size_text(item.size_bytes),
                        age_text(item.age),
                        console.enum_text(item, "reason"),
                    ]
                    for item in swept.items
                ),
                empty="",
            )
        total = swept.num_blobs + swept.num_partials + swept.num_views + swept.num_quarantined
        if total > len(swept.items):
            console.out.print(f"and {total - len(swept.items)} more")
        console.out.print(
            f"{console.size_text(swept.freed_bytes)} {'would be ' if dry_run else ''}freed:"
            f" {swept.num_blobs} blobs, {swept.num_partials} partial downloads, {swept.num_views} views,"
            f" {swept.num_quarantined} from quarantine"
        )

    console.run(ctx, work)


def cleanup(
    ctx: typer.Context,
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="How many versions of each model stay, the newest.")
    ],
    models: Annotated[list[str] | None, typer.Argument(help="Only these models. Default: all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: console.Json = False,
) -> None:
    """Remove old versions. What is current, loaded, the base of an adapter or labelled `pinned` always stays."""

    async def work(client: Client) -> None:
        names = [model_name(ServedName.parse(model, field="models").model_id) for model in models or []]
        request = pb.CleanUpVersionsRequest(models=names, num_keep=keep, dry_run=True)
        planned = await client.downloader.CleanUpVersions(request)
        if not (dry_run or as_json):
            _print_versions(planned)
        if not dry_run and planned.versions:
            if not (yes or as_json):
                typer.confirm(
                    f"Remove, and free {console.size_text(planned.freed_bytes)}?", abort=True, err=True
                )
            request.dry_run = False
            planned = await client.downloader.CleanUpVersions(request)
        if as_json:
            console.print_json({"dry_run": dry_run, **console.to_json(planned)})
            return
        if dry_run:
            _print_versions(planned)
        console.out.print(
            f"{len(planned.versions)} versions {'would go' if dry_run else 'removed'};"
            f" {console.size_text(planned.freed_bytes)} {'would be ' if dry_run else ''}freed"
        )

    console.run(ctx, work)


def _print_versions(planned: pb.CleanUpVersionsResponse) -> None:
    rows = [
        [version.name.removeprefix("models/"), "goes", console.size_text(version.size_bytes)]
        for version in planned.versions
    ]
    rows += [
        [version.name.removeprefix("models/"), "stays", console.enum_text(version, "reason")]
        for version in planned.kept
    ]
    console.print_table(("VERSION", "WHAT", "SIZE OR WHY"), rows, empty="no versions here")


def validate(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models, or `model:version`. Default: all, and what no model refers to."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Download again what is damaged or missing.")
    ] = False,
    max_bytes_per_second: Annotated[
        int,
        typer.Option("--max-bytes-per-second", min=0, help="Read at most this fast; 0: as fast as it goes."),
    ] = 0,
    as_json: console.Json = False,
) -> None:
    """Read every byte again. Exit code 1 if something is not whole in the end.

    Ctrl-C ends it; what was found until then stands, and a download that repairs something goes on.
    """

    async def work(client: Client) -> None:
        request = pb.ValidateModelsRequest(
            names=[resource_of(model) for model in models or []],
            repair=repair,
            max_bytes_per_second=max_bytes_per_second,
        )
        files: list[pb.ValidatedFile] = []
        versions: list[pb.ValidatedVersion] = []
        summary = pb.ValidationSummary()
        call = client.downloader.ValidateModels(request)
        try:
            with console.transfer_progress(
                TextColumn("{task.description}", markup=False), quiet=as_json
            ) as progress:
                task = progress.add_task("reading", total=None)
                async for response in call:
                    match response.WhichOneof("event"):
                        case "progress" if not response.progress.path:
                            num_bytes = console.size_text(response.progress.total_bytes)
                            progress.print(f"reading {num_bytes}; Ctrl-C ends it, and what was found stands")
                        case "progress":
                            _show(progress, task, response.progress)
                        case "file" if response.file.verdict != pb.FILE_VERDICT_GOOD:
                            files.append(response.file)
                        case "version":
                            versions.append(response.version)
                        case "summary":
                            summary = response.summary
        finally:
            call.cancel()
        if as_json:
            console.print_json(
                {
                    "bad_files": [console.to_json(file) for file in files],
                    "versions": [console.to_json(version) for version in versions],
                    "summary": console.to_json(summary),
                }
            )
        else:
            _print_findings(files, versions, summary)
        unmended = {version.name for version in versions if version.verdict == pb.VERSION_VERDICT_QUARANTINED}
        if unmended or any(not file.version for file in files):
            raise typer.Exit(1)

    console.run(ctx, work)


def resource_of(name: str) -> str:
    """`model` or `model:version` as a resource name. Raises InvalidReference."""
    served = ServedName.parse(name, field="models")
    if served.version_id is None:
        return model_name(served.model_id)
    return version_name(served.model_id, served.version_id)


def age_text(age: Duration) -> str:
    """A length of time for people, in its largest unit: `3 d`."""
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if age.seconds >= length_s:
            return f"{age.seconds // length_s} {unit}"
    return f"{age.seconds} s"


def _print_findings(
    files: list[pb.ValidatedFile], versions: list[pb.ValidatedVersion], summary: pb.ValidationSummary
) -> None:
    if files:
        console.print_table(
            ("VERSION", "FOUND", "FILE"),
            (
                [file.version.removeprefix("models/") or "-", console.enum_text(file, "verdict"), file.path]
                for file in files
            ),
            empty="",
        )
    for version in versions:
        if version.verdict != pb.VERSION_VERDICT_WHOLE:
            told = f"{version.name.removeprefix('models/')}: {console.enum_text(version, 'verdict')}"
            console.out.print(f"{told}; {version.reason}" if version.reason else told, markup=False)
    console.out.print(
        f"{summary.num_versions} versions, {summary.num_good} blobs whole, {summary.num_damaged} damaged,"
        f" {summary.num_missing} missing; {console.size_text(summary.read_bytes)} read"
    )


def _show(progress: Progress, task: TaskID, at: pb.ValidationProgress) -> None:
    where = f"{at.version.removeprefix('models/')} {at.path}".strip()
    progress.update(task, description=where[-48:], completed=at.completed_bytes, total=at.total_bytes or None)
