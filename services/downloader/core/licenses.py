"""What a model's licence is called, and whether it may be pulled. Pure functions.

Names are those of https://spdx.org/licenses/ where a licence has one, and otherwise the publisher's own, as the
Hugging Face Hub lists them: `llama3.1`, `gemma`.
"""

import re
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import PurePosixPath
from typing import Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from services.kit.errors import PermissionDenied

SETTING: Final = "downloader.licenses"

MAX_TEXT_BYTES: Final = 256 * 1024

_MAX_NAME_CHARS: Final = 120
_HEAD_CHARS: Final = 1024
_FILES: Final = ("license", "licence", "copying")
_SUFFIXES: Final = ("", ".txt", ".md")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]+")
# What a text begins with, in lower case, with one space between words: who only mentions a licence is not under it.
_TITLES: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"apache license,? version 2\.0", "Apache-2.0"),
        (r"(the )?mit license\b", "MIT"),
        (
            r"(copyright .{1,200})?permission is hereby granted, free of charge, to any person obtaining a copy",
            "MIT",
        ),
        (r"gnu affero general public license,? version 3", "AGPL-3.0-only"),
        (r"gnu lesser general public license,? version 3", "LGPL-3.0-only"),
        (r"gnu general public license,? version 3", "GPL-3.0-only"),
        (r"gnu general public license,? version 2", "GPL-2.0-only"),
        (r"mozilla public license,? version 2\.0", "MPL-2.0"),
        (r"bsd 3-clause license", "BSD-3-Clause"),
        (r"bsd 2-clause license", "BSD-2-Clause"),
        (r"(creative commons )?attribution-noncommercial-sharealike 4\.0", "CC-BY-NC-SA-4.0"),
        (r"(creative commons )?attribution-noncommercial-noderivatives 4\.0", "CC-BY-NC-ND-4.0"),
        (r"(creative commons )?attribution-noncommercial 4\.0", "CC-BY-NC-4.0"),
        (r"(creative commons )?attribution-sharealike 4\.0", "CC-BY-SA-4.0"),
        (r"(creative commons )?attribution-noderivatives 4\.0", "CC-BY-ND-4.0"),
        (r"(creative commons )?attribution 4\.0 international", "CC-BY-4.0"),
        (r"(creative commons legal code )?cc0 1\.0 universal", "CC0-1.0"),
        (r"this is free and unencumbered software released into the public domain", "Unlicense"),
        (r"llama 2 community license", "llama2"),
        (r"(meta )?llama 3 community license", "llama3"),
        (r"llama 3\.1 community license", "llama3.1"),
        (r"llama 3\.2 community license", "llama3.2"),
        (r"llama 3\.3 community license", "llama3.3"),
        (r"llama 4 community license", "llama4"),
        (r"gemma terms of use", "gemma"),
    )
)
# https://pypi.org/classifiers/, those that name one licence and no more.
_CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "The Unlicense (Unlicense)": "Unlicense",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
}


def is_license(path: str) -> bool:
    """Whether a file is a model's licence, by its name alone."""
    name = PurePosixPath(path.lower())
    return len(name.parts) == 1 and name.stem in _FILES and name.suffix in _SUFFIXES


def license_of_text(text: bytes) -> str:
    """What a licence is called: by its title if that is known, else its first line with something on it."""
    decoded = text[:MAX_TEXT_BYTES].decode("utf-8", "replace")
    head = re.sub(r"[\s#*=_]+", " ", decoded[:_HEAD_CHARS]).strip().lower()
    for title, name in _TITLES:
        if title.match(head):
            return name
    return next((line for line in map(_line, decoded.splitlines()) if line), "")


def license_of_metadata(text: bytes) -> str:
    """A wheel's, out of its METADATA (https://packaging.python.org/en/latest/specifications/core-metadata/)."""
    headers = HeaderParser().parsestr(text[:MAX_TEXT_BYTES].decode("utf-8", "replace"))
    # Some have the whole text for `License`.
    for stated in (headers.get("License-Expression"), headers.get("License")):
        if name := license_of_text(str(stated or "").encode()):
            return canonical(name)
    for classifier in headers.get_all("Classifier") or []:
        first, _, last = str(classifier).rpartition(" :: ")
        if first.startswith("License"):
            return _CLASSIFIERS.get(last.strip(), _line(last))
    return ""


def canonical(name: str) -> str:
    """One spelling of a name: SPDX's where it is one of SPDX's."""
    shown = _line(name)
    try:
        return str(canonicalize_license_expression(shown))
    except InvalidLicenseExpression:
        return shown


def check_license(name: str, allowed: Sequence[str]) -> None:
    """Raises PermissionDenied unless one of them is allowed. allowed: empty for all.

    `MIT OR Apache-2.0` leaves a choice, `MIT AND CC-BY-4.0` none; what is more complicated has to be allowed as it is.
    """
    if not allowed:
        return
    known = {canonical(each).lower() for each in allowed}
    whole = canonical(name)
    choices = [] if "(" in whole else [choice.split(" AND ") for choice in whole.split(" OR ")]
    if whole.lower() in known or any(all(part.lower() in known for part in choice) for choice in choices):
        return
    what = (
        f"under the licence {whole!a}"
        if whole
        else "under a licence that neither its source nor its files say"
    )
    raise PermissionDenied(f"the model is {what}, which is not among {SETTING}: {', '.join(allowed)}")


def _line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())[:_MAX_NAME_CHARS]
