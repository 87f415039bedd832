"""Where pip would look for packages: its configuration files and environment, read by its rules
(https://pip.pypa.io/en/stable/topics/configuration/).

pip itself is not run for it: environments made by uv or pipx have none.
"""

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.kit.errors import SourceUnavailable

# Later ones override earlier ones, as for the command that we stand in for.
_SECTIONS: Final = ("global", "download")
_PREFIX: Final = "PIP_"
_TRUE: Final = ("1", "true", "yes", "y", "on", "t")


@dataclass(frozen=True, slots=True)
class PipConfig:
    """index_urls: the main one first. find_links: pages or folders with links. cert: a file of CAs, or empty."""

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cert: str = ""


def read_pip_config(environment: Mapping[str, str] = os.environ) -> PipConfig:
    """Read what pip would. Raises SourceUnavailable if a file cannot be read, or no index is named and no pip
    is there to know its own.
    """
    settings = dict(_settings(environment))
    indexes = []
    if settings.get("no-index", "").lower() not in _TRUE:
        indexes = [
            settings.get("index-url") or _default_index(),
            *settings.get("extra-index-url", "").split(),
        ]
    return PipConfig(
        index_urls=tuple(indexes),
        find_links=tuple(settings.get("find-links", "").split()),
        cert=settings.get("cert", ""),
    )


def _settings(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(option, value), what overrides after what it overrides."""
    parser = _Parser()
    for file in _files(environment):
        try:
            parser.read(file)
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"pip's configuration in {file} cannot be read: {error}") from None
    for section in _SECTIONS:
        if parser.has_section(section):
            yield from parser.items(section)
    for name, value in environment.items():
        if name.startswith(_PREFIX) and value:
            yield _option(name.removeprefix(_PREFIX)), value


class _Parser(configparser.RawConfigParser):
    """Options under the names that pip knows them by, however they are spelled."""

    def optionxform(self, optionstr: str) -> str:
        return _option(optionstr)


def _option(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    """The machine's, the user's, the Python environment's, the one that is asked for; not all need be there."""
    own = environment.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return
    home = Path(environment.get("HOME") or Path.home())
    folders = [Path("/etc/xdg/pip"), Path("/etc")]
    if listed := environment.get("XDG_CONFIG_DIRS"):
        folders[:1] = [Path(folder) / "pip" for folder in listed.split(os.pathsep) if folder]
    if sys.platform == "darwin":
        folders = [Path("/Library/Application Support/pip")]
    if not (own and Path(own).exists()):  # the file that is asked for stands in for the user's
        user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip"
        mac = home / "Library/Application Support/pip"
        folders += [home / ".pip", mac if sys.platform == "darwin" and mac.is_dir() else user]
    yield from (folder / "pip.conf" for folder in [*folders, Path(sys.prefix)])
    if own:
        yield Path(own)


def _default_index() -> str:
    # pip's own default is asked for, so that no index is named here.
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        raise SourceUnavailable(
            "no package index is configured, and pip, which knows one, is not installed beside Lares;"
            " set PIP_INDEX_URL"
        ) from None
    return str(PyPI.simple_url)
