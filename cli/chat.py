"""`lares chat`: one answer, or a conversation."""

import asyncio
import sys
from typing import Annotated

import typer

from cli import console
from cli.client import Client
from cli.models import first_model
from lares.inference.v1 import inference_pb2 as pb
from lares.registry.v1 import registry_pb2
from services.kit.channels import translate_errors
from services.kit.errors import LaresError
from services.kit.settings import Settings

STARTER = "smollm2-135m-instruct"


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("chat")(chat)


def chat(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask. Left out: a conversation, or what comes in through a pipe."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Served name. Default: the first model here that can chat.")
    ] = "",
    system: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 to 2; 0 always picks the likeliest.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat an answer.")] = None,
    as_json: console.Json = False,
) -> None:
    """Chat with a model. Ctrl-C stops an answer; in a conversation, Ctrl-D or /bye ends it."""
    request = pb.GenerateRequest(chat=pb.ChatPrompt())
    if temperature is not None:
        request.sampling.temperature = temperature
    if seed is not None:
        request.sampling.seed = seed
    if max_tokens is not None:
        request.stop.max_tokens = max_tokens
    if system:
        _say(request, pb.ROLE_SYSTEM, system)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()

    if prompt is None:
        with console.exit_code():
            _converse(ctx.obj.settings(), request, model)
        return

    async def work(client: Client) -> None:
        request.model = model or await _default_model(client)
        _say(request, pb.ROLE_USER, prompt)
        answer = Answer()
        await answer.stream(client, request, quiet=as_json)
        if as_json:
            console.print_json(answer.to_json(request.model))

    console.run(ctx, work)


async def _default_model(client: Client) -> str:
    return await first_model(client, registry_pb2.CAPABILITY_CHAT, pull_hint=STARTER)


def _say(request: pb.GenerateRequest, role: pb.Role.ValueType, text: str) -> None:
    request.chat.messages.append(pb.ChatMessage(role=role, content=[pb.ContentPart(text=text)]))


class Answer:
    """An answer as it comes in. What has come is kept when the rest does not."""

    def __init__(self) -> None:
        self.text = ""
        self._usage = pb.Usage()
        self._reason = ""
        self._version = ""

    async def stream(self, client: Client, request: pb.GenerateRequest, *, quiet: bool = False) -> None:
        """Ask, and print the answer while it comes."""
        call = client.inference.Generate(request)
        try:
            async for response in call:
                match response.WhichOneof("event"):
                    case "started":
                        self._version = response.started.adapter or response.started.version
                    case "delta":
                        self.text += response.delta.text
                        if not quiet:
                            console.out.print(response.delta.text, end="", markup=False, emoji=False)
                    case "usage":
                        self._usage = response.usage
                    case "finished":
                        self._reason = console.enum_text(response.finished.choices[0], "reason")
        finally:
            call.cancel()
            if not quiet:
                console.out.print()

    def to_json(self, model: str) -> dict[str, object]:
        """The whole answer, for programs."""
        return {
            "model": model,
            "version": self._version,
            "text": self.text,
            "finish_reason": self._reason,
            "usage": console.to_json(self._usage),
        }


def _converse(settings: Settings, request: pb.GenerateRequest, model: str) -> None:
    """Ask and answer until the person ends it.

    The loop runs only while an answer comes, so that Ctrl-C means what a person expects: it stops the
    answer, and at the prompt it ends the conversation.
    """
    client = Client(settings)

    async def one_answer(answer: Answer) -> None:
        with translate_errors():
            await answer.stream(client, request)

    with asyncio.Runner() as runner:
        try:
            request.model = model or runner.run(client.checked(_default_model))
            console.err.print(f"[dim]{request.model} · Ctrl-C stops an answer, Ctrl-D or /bye ends[/]")
            while (said := _ask()) is not None:
                _say(request, pb.ROLE_USER, said)
                answer = Answer()
                try:
                    runner.run(one_answer(answer))
                except KeyboardInterrupt:
                    console.err.print("[dim]stopped[/]")
                except LaresError as error:
                    console.err.print(f"error: {error}", style="red", markup=False)
                    del request.chat.messages[-1]
                    continue
                _say(request, pb.ROLE_ASSISTANT, answer.text)
        finally:
            runner.run(client.close())


def _ask() -> str | None:
    """What the person says next; None when they have had enough."""
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            console.out.print()
            return None
        if said in ("/bye", "/exit", "/quit"):
            return None
        if said:
            return said
