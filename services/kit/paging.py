"""Pages of a list, after AIP-158: how many, and where to go on. Pure Python.

A page token is the key of the last row that was given out, so that a page costs the same wherever it lies and
a row that is inserted meanwhile neither repeats nor hides another. It also names the listing it belongs to
(`scope`, with the filter in it): a token that is sent back to another listing is refused, not misread.
"""

import base64
import binascii
import hashlib
import json
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument, InvalidPageToken

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000

_MAX_TOKEN_CHARS = 4096

CursorKey = tuple[str | int, ...]


def page_size(value: int, *, field: str = "page_size") -> int:
    """Rows to return for a request that says `value`: 0 means 100. Raises InvalidArgument past 1000."""
    if not 0 <= value <= MAX_PAGE_SIZE:
        raise InvalidArgument.at(
            field, f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}; it is {value}"
        )
    return value or DEFAULT_PAGE_SIZE


def encode_cursor(scope: str, key: CursorKey) -> str:
    """The token after the row whose sort key is `key`. scope: the listing with its filter, any text."""
    text = json.dumps([_fingerprint(scope), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(
    token: str, scope: str, types: tuple[type[str] | type[int], ...], *, field: str = "page_token"
) -> CursorKey | None:
    """The key in a token, or None for the empty token: the first page. types: of the key's parts, in order.

    Raises InvalidPageToken for what `encode_cursor` with this scope did not make.
    """
    if not token:
        return None
    key = _parse(token)
    if key is None or len(key) != len(types) + 1 or key[0] != _fingerprint(scope):
        raise _invalid(field)
    parts = key[1:]
    # `type(...) is`, because a bool is an int to isinstance.
    if any(type(part) is not wanted for part, wanted in zip(parts, types, strict=True)):
        raise _invalid(field)
    return parts


def _parse(token: str) -> CursorKey | None:
    if len(token) > _MAX_TOKEN_CHARS:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        parts = json.loads(raw)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return tuple(parts) if isinstance(parts, list) else None


def _fingerprint(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:16]


def _invalid(field: str) -> InvalidPageToken:
    why = "was not given out by this listing with this filter; leave it empty to begin again"
    return InvalidPageToken(f"{field}: {why}", violations=[FieldViolation(field, why)])
