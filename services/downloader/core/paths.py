"""Paths that come from outside: checked before any of them touches a disk. Pure functions."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from services.kit.errors import UnsupportedFormat

MAX_PATH_CHARS: Final = 1024
MAX_PART_BYTES: Final = 255

# With what ends a line, and what turns the order of the characters behind it: such a name is not what it looks like.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Windows reads `a:b` as a stream of `a`, and these names as devices, whatever follows their first dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def check_path(path: str) -> str:
    """A relative path that stays in its folder on every system. Raises UnsupportedFormat."""
    if why := path_fault(path):
        raise UnsupportedFormat(f"a file named {path[:120]!a} {why}; nothing of it was taken")
    return path


def path_fault(path: str) -> str:
    """Why a path is refused; empty if it is fine."""
    if not path or len(path) > MAX_PATH_CHARS:
        return f"must have 1 to {MAX_PATH_CHARS} characters"
    if _CONTROL.search(path) or "\\" in path or ":" in path:
        return "must hold no control character, backslash or colon"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "must be relative and have no empty, '.' or '..' part"
        if len(part.encode()) > MAX_PART_BYTES:
            return f"must have no part longer than {MAX_PART_BYTES} bytes"
        if _DEVICE.fullmatch(part) or part[-1] in " .":
            return "must have no part that Windows reads as something else"
    return ""


def check_paths(paths: Iterable[str]) -> None:
    """Paths that can lie in one folder on every system, no two the same. Raises UnsupportedFormat."""
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        key = unicodedata.normalize("NFC", check_path(path)).casefold()
        parts = key.split("/")
        above = {"/".join(parts[:end]) for end in range(1, len(parts))}
        if key in files or key in folders or above & files:
            raise UnsupportedFormat(f"two files fall on {path!r}; nothing of it was taken")
        files.add(key)
        folders |= above
