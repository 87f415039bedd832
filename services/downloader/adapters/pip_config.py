"""Where pip would look for packages: its own configuration files and environment, as it reads them itself.

pip is asked by command, in a child process: it has no other interface that stays
(https://pip.pypa.io/en/stable/user_guide/#using-pip-from-your-program).
"""

import ast
import asyncio
import sys
from dataclasses import dataclass
from typing import Final

from services.kit.errors import SourceUnavailable

_TIMEOUT_S: Final = 60.0
# Later ones override earlier ones, as for the command that we stand in for.
_SECTIONS: Final = ("global", "download", ":env:")
# pip's own default is asked for, so that no index is named here.
_DEFAULT_INDEX: Final = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


@dataclass(frozen=True, slots=True)
class PipConfig:
    """index_urls: the main one first. find_links: pages or folders with links. cert: a file of CAs, or empty."""

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cert: str = ""


async def read_pip_config() -> PipConfig:
    """Ask pip. Raises SourceUnavailable if there is no pip beside this Python."""
    settings = _parse(await _python("-m", "pip", "config", "list"))
    indexes = []
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        index = settings.get("index-url") or (await _python("-c", _DEFAULT_INDEX)).strip()
        indexes = [index, *settings.get("extra-index-url", "").split()]
    return PipConfig(
        index_urls=tuple(indexes),
        find_links=tuple(settings.get("find-links", "").split()),
        cert=settings.get("cert", ""),
    )


def _parse(listing: str) -> dict[str, str]:
    """`global.index-url='https://...'`, a line each."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        name, equals, quoted = line.partition("=")
        section, _, key = name.strip().rpartition(".")
        if not equals or section not in found:
            continue
        try:
            found[section][key] = str(ast.literal_eval(quoted.strip()))
        except (ValueError, SyntaxError):
            continue
    return {key: value for section in _SECTIONS for key, value in found[section].items()}


async def _python(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SourceUnavailable(
            "pip does not answer; `python -m pip config list` should print its settings"
        ) from None
    if process.returncode != 0:
        raise SourceUnavailable("pip is needed beside Lares to know where packages come from; install pip")
    return output.decode("utf-8", "replace")
