"""The process that renders chat templates. A template is a stranger's program: it runs where it can break nothing.

The sandbox of jinja2 keeps a template from files and from Python's internals, but neither from running for
ever nor from filling the memory: `[a, a]` forty times over compares and prints for years, within one operator.
So the limits are the operating system's: a timer that ends the process, and a bound on its memory.

    stdin    frames: first {"templates": {name: source}}, then one {"template": name, "variables": {...}} a chat
    stdout   a frame for each chat: {"text": ...}, or {"error": "syntax" | "refused" | "failed", "message": ...}

It imports little, so that it is small and starts at once.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.inference.adapters.frames import read_frame, write_frame

# Templates take milliseconds. Of the processor's time, so that a busy machine counts for nothing.
_MAX_CPU_SECONDS: Final = 2.0
_MAX_MEMORY_BYTES: Final = 768 * 1024 * 1024
_MAX_CHARS: Final = 16 * 1024 * 1024


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin.
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sources = read_frame(requests) or {"templates": {}}
    templates = Templates(sources["templates"])
    while (request := read_frame(requests)) is not None:
        # Nobody handles SIGPROF: it ends the process wherever it is, in the middle of an operator, too.
        signal.setitimer(signal.ITIMER_PROF, _MAX_CPU_SECONDS)
        reply = templates.render(request["template"], request["variables"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(replies, reply)


class Templates:
    """Chat templates by name, each compiled once, with what transformers gives them."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._compiled: dict[str, jinja2.Template] = {}
        self._environment = _environment()

    def render(self, name: str, variables: Mapping[str, Any]) -> dict[str, str]:
        """The reply to one chat."""
        try:
            if name not in self._compiled:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            return {"text": _joined(self._compiled[name].generate(variables))}
        except jinja2.TemplateSyntaxError as error:
            return {"error": "syntax", "message": str(error.message)}
        except jinja2.TemplateError as error:
            # What a template raises by itself is about the messages: roles that must alternate, for example.
            return {"error": "refused", "message": str(error)}
        except MemoryError:
            return {"error": "failed", "message": "it takes too much memory"}
        except Exception as error:  # A stranger's program: it may raise whatever there is.
            return {"error": "failed", "message": f"{error}" or type(error).__name__}


def _joined(chunks: Iterable[str]) -> str:
    found: list[str] = []
    num_chars = 0
    for chunk in chunks:
        found.append(chunk)
        num_chars += len(chunk)
        if num_chars > _MAX_CHARS:
            raise ValueError(f"it writes more than {_MAX_CHARS} characters")
    return "".join(found)


def _environment() -> ImmutableSandboxedEnvironment:
    """Like transformers' `_compile_jinja_template`, which templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said, for training: here it is only its body."""

    tags: set[str] = {"generation"}  # noqa: RUF012, the library's class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A call block, so that what is set within stays within, as with transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """The class dict without its attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that stores no name with an underscore in front."""

    def __init__(*args: Any, **values: Any) -> None:
        # Like jinja2's own, which takes a value by the name of `self`.
        self, args = args[0], args[1:]
        given = dict(*args, **values)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot store {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, it leaves `<`, `>`, `&` and `'` as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


if __name__ == "__main__":
    main()
