"""Who calls, as far as it matters whose prompts are whose."""

import hashlib

from starlette.requests import Request


def cache_salt(request: Request) -> str:
    """Equal for requests with the same API key, different for others, empty without one.

    How soon the first token comes tells whether a prompt's beginning was computed before: those who do not share a
    key must not share such beginnings. The key itself does not travel on; the hash is the same in every gateway, so
    that several of them give one caller one cache.
    """
    _, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if not key:
        return ""
    return hashlib.blake2b(key.encode("latin-1"), digest_size=16, person=b"lares cache salt").hexdigest()
