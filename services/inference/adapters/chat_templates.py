"""Chat templates, rendered in a process of their own."""

import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from services.inference.adapters.frames import read_frame, write_frame
from services.kit.errors import InvalidArgument, InvalidTemplate

# A template that breaks out of its sandbox should find no secrets: only what Python needs, and the time zone.
_INHERITED: Final = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TZ")


class ChatTemplates:
    """A model's templates by name. One thread uses it; the process starts beside, ends with it, and is replaced."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = dict(sources)
        self._process = self._start()

    def render(self, name: str, variables: Mapping[str, Any]) -> str:
        """What a template writes. variables: JSON values.

        Raises InvalidTemplate, also for one that takes too much time or memory; InvalidArgument for messages that
        the template refuses.
        """
        if self._process.poll() is not None:
            self._process = self._start()
        requests, replies = _pipes(self._process)
        try:
            write_frame(requests, {"template": name, "variables": variables})
        except BrokenPipeError:
            reply = None
        else:
            reply = read_frame(replies)
        if reply is None:
            self._process.wait()  # Its pipe is closed: it has ended, or is about to.
            raise InvalidTemplate("the model's chat template takes too much time or memory")
        match reply.get("error"):
            case None:
                return str(reply["text"])
            case "syntax":
                raise InvalidTemplate(f"the model's chat template does not compile: {reply['message']}")
            case "refused":
                raise InvalidArgument.at(
                    "chat.messages", f"the chat template refuses them: {reply['message']}"
                )
            case _:
                raise InvalidTemplate(f"the chat template failed on these messages: {reply['message']}")

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        process = subprocess.Popen(
            # -P: the folder that happens to be the current one is nowhere to import from.
            [sys.executable, "-P", "-m", "services.inference.adapters.template_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        weakref.finalize(self, _stop, process)
        # One that ends at once, for a source that is too large, is found out when it should render.
        with contextlib.suppress(BrokenPipeError):
            write_frame(_pipes(process)[0], {"templates": self._sources})
        return process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        pipe.close()
