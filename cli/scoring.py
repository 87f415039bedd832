"""`lares score`, `rerank`: how likely a model finds a text, and how well documents fit a query."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.client import Client
from lares.inference.v1 import inference_pb2 as pb
from services.kit.errors import InvalidArgument

_MAX_SHOWN_CHARS = 100


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("score")(score)
    app.command("rerank")(rerank)


def score(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Served name of a language model.")],
    text: Annotated[
        str | None, typer.Argument(help="What to score. Left out: --file, or what comes in through a pipe.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Score this file, UTF-8, as one text.")] = None,
    as_json: console.Json = False,
) -> None:
    """Tell how likely a model finds a text: its perplexity; with --json, each token's log probability."""

    async def work(client: Client) -> None:
        response = await client.inference.Score(pb.ScoreRequest(model=model, text=_text(text, file)))
        if as_json:
            console.print_json({"model": model, **console.to_json(response)})
            return
        told = f"perplexity {response.perplexity:.4g}" if response.HasField("perplexity") else "no perplexity"
        console.out.print(
            f"{told}, log probability {response.sum_logprob:.4f} over {max(0, len(response.tokens) - 1)} tokens"
            " after the first"
        )

    console.run(ctx, work)


def rerank(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Served name of a reranking or an embedding model.")],
    query: Annotated[str, typer.Argument(help="What is looked for.")],
    documents: Annotated[list[str], typer.Argument(help="Texts to order.")],
    top_n: Annotated[int | None, typer.Option(min=1, help="Only this many of the best.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut documents that are too long.")] = False,
    as_json: console.Json = False,
) -> None:
    """Order documents by how well they fit a query, best first."""

    async def work(client: Client) -> None:
        request = pb.RerankRequest(
            model=model, query=query, documents=documents, top_n=top_n, truncate=truncate
        )
        response = await client.inference.Rerank(request)
        if as_json:
            console.print_json({"model": model, **console.to_json(response)})
            return
        rows = ([f"{r.score:.4f}", str(r.index), _shown(documents[r.index])] for r in response.results)
        console.print_table(("SCORE", "INDEX", "DOCUMENT"), rows, empty="")

    console.run(ctx, work)


def _text(text: str | None, file: Path | None) -> str:
    """What to score. Raises InvalidArgument."""
    if text is not None and file is not None:
        raise InvalidArgument.at("file", "stands for TEXT: give one of the two")
    if file is not None:
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument.at("file", f"cannot be read: {error}") from error
    if text is None and sys.stdin.isatty():
        raise InvalidArgument.at("text", "is required: TEXT, --file, or a pipe")
    return sys.stdin.read() if text is None else text


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN_CHARS else f"{line[:_MAX_SHOWN_CHARS]}..."
