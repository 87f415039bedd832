"""How a model may be asked for, and which files that chooses.

Globs are those of huggingface_hub (`filter_repo_objects`): fnmatch on the whole path, so that `*` passes over `/` too;
one that ends in `/` means everything below.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from services.downloader.core.download import DEFAULT_OPTIONS, PullOptions
from services.downloader.core.ports import DownloadStore
from services.downloader.core.selection import gguf_models, storable_files
from services.downloader.core.sources import Resolved
from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    UnsupportedFormat,
    UnsupportedParameter,
)
from services.kit.names import ModelRef, parse_version_name

MAX_PATTERNS: Final = 64
MAX_PATTERN_CHARS: Final = 256
MAX_PRIORITY: Final = 100
MIN_TIMEOUT_S: Final = 1.0
MAX_TIMEOUT_S: Final = 7 * 86_400.0

# Sources whose files are files of the model. Others deliver archives, or one thing with all that belongs to it.
_OF_FILES: Final = ("hf", "lares", "file")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NARROWED: Final = re.compile(r".+-only-[0-9a-f]{8}")
# What the suffix leaves of the 128 characters that an id may have.
_MAX_BASE_CHARS: Final = 128 - len("-only-00000000")


def check_options(options: PullOptions, ref: ModelRef) -> None:
    """Raises InvalidArgument, which names the field; UnsupportedParameter for patterns where none can choose."""
    _check_patterns("options.allow_patterns", options.allow_patterns)
    _check_patterns("options.ignore_patterns", options.ignore_patterns)
    field = "options.allow_patterns" if options.allow_patterns else "options.ignore_patterns"
    if options.is_narrowed and ref.provider not in _OF_FILES:
        names = ", ".join(f"{name}:" for name in _OF_FILES)
        raise UnsupportedParameter.at(field, f"choose among the files of {names}; {ref.provider}: has none")
    if options.allow_patterns and ref.tag is not None:
        raise InvalidArgument.at(
            field, f"choose the files, and so does ':{ref.tag}' in the source; leave one of them out"
        )
    check_priority(options.priority)
    if options.timeout_s is not None and not MIN_TIMEOUT_S <= options.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidArgument.at("options.timeout", "must be 1 s to 7 days")


def check_priority(priority: int) -> None:
    """Raises InvalidArgument."""
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidArgument.at("options.priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}")


def chosen_files(
    paths: Sequence[str], options: PullOptions, select: Callable[[Sequence[str]], Iterable[str]]
) -> list[str]:
    """Of the files that a source has, those that are asked for. select: chooses where no glob says which.

    Globs choose from what the store takes at all: neither code nor what runs code when it is loaded.

    Raises UnsupportedFormat if nothing is left, or more than one model.
    """
    left = [path for path in paths if not _matches(path, options.ignore_patterns)]
    if not options.allow_patterns:
        return list(select(left))
    chosen = [path for path in storable_files(left) if _matches(path, options.allow_patterns)]
    if not chosen:
        raise UnsupportedFormat(
            f"the patterns choose none of the source's {len(paths)} files that Lares stores;"
            " code and pickles are never stored"
        )
    if len(models := gguf_models(chosen)) > 1:
        raise UnsupportedFormat(
            f"the patterns choose several models: {', '.join(sorted(models)[:5])}; choose one"
        )
    return chosen


def narrowed(resolved: Resolved, options: PullOptions) -> Resolved:
    """The same, under an id that tells which of its files it has: never that of the whole version."""
    if not options.is_narrowed or resolved.version_id is None:
        return resolved
    paths = "\n".join(sorted(file.path for file in resolved.files))
    suffix = hashlib.sha256(paths.encode()).hexdigest()[:8]
    return replace(resolved, version_id=f"{resolved.version_id[:_MAX_BASE_CHARS]}-only-{suffix}")


def is_narrowed_id(version_id: str) -> bool:
    """Whether a version has only some of its source's files, as far as its id tells."""
    return _NARROWED.fullmatch(version_id) is not None


async def narrowing_of(version: str, records: DownloadStore) -> PullOptions:
    """What chose a version's files when it was pulled: another pull of it, or of a newer one, asks for the same.

    version: its resource name. Raises FailedPrecondition if it has only some files and nobody knows any more why those.
    """
    download = await records.download_of_version(version)
    if download is not None:
        return download.options.narrowing
    if is_narrowed_id(parse_version_name(version)[1]):
        raise FailedPrecondition(
            f"{version} has only some of its source's files, and the patterns that chose them are not recorded here;"
            " pull it again with the same patterns"
        )
    return DEFAULT_OPTIONS


def _check_patterns(field: str, patterns: Sequence[str]) -> None:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidArgument.at(field, f"must be at most {MAX_PATTERNS}")
    for pattern in patterns:
        if not 0 < len(pattern) <= MAX_PATTERN_CHARS or _CONTROL.search(pattern):
            raise InvalidArgument.at(
                field, f"must each have 1 to {MAX_PATTERN_CHARS} characters, none of them a control character"
            )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)
