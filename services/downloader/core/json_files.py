"""The JSON files of a model: each read once, and no longer than configuration is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.kit.errors import UnsupportedFormat

# Parsed, it takes forty times as much memory at worst.
_MAX_JSON_BYTES: Final = 8 * 1024 * 1024


class JsonFiles:
    """files: path in the model -> where it lies."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._read: dict[str, Any] = {}

    def table(self, name: str) -> dict[str, Any]:
        """A table; empty if there is no such file. Raises UnsupportedFormat."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise UnsupportedFormat(f"{name} is no table of settings")
        return value

    def value(self, name: str) -> Any:
        """What a file holds; an empty table if there is no such file. Raises UnsupportedFormat."""
        if name not in self._read:
            path = self._files.get(name)
            self._read[name] = {} if path is None else _parsed(name, path)
        return self._read[name]


def _parsed(name: str, path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise UnsupportedFormat(f"{name} is too long to be configuration")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedFormat(f"{name} is no JSON that can be read") from error
