"""A dataset file on its way in: every line is checked as it passes, in constant memory."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from services.kit.errors import FieldViolation, InvalidDataset, PayloadTooLarge
from services.trainer.core.examples import BadExample, detect_format, parse_example
from services.trainer.core.model import DatasetFormat

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_EXAMPLES: Final = 1_000_000
MAX_VIOLATIONS: Final = 10

BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file that passed is."""

    format: DatasetFormat
    size_bytes: int
    digest: str
    num_examples: int


class DatasetChecker:
    """Feed it a JSONL file in pieces, then ask for the summary.

    It stops at the tenth line at fault: `feed` and `finish` raise InvalidDataset, whose violations name
    the lines as
    `line 3`, and PayloadTooLarge past max_bytes. Blank lines and a UTF-8 byte order mark are passed over.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._rest = b""
        self._line_number = 0
        self._num_examples = 0
        self._format: DatasetFormat | None = None
        self._violations: list[FieldViolation] = []

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        self._size_bytes += len(chunk)
        if self._size_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"a dataset may have at most {self._max_bytes} bytes; split it, or raise "
                f"trainer.max_dataset_bytes"
            )
        self._hash.update(chunk)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._check(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self._line_number += 1
            self._blame(f"is longer than {MAX_LINE_BYTES} bytes")
            raise self._error()

    def finish(self) -> Summary:
        """The file is complete."""
        if self._rest:
            self._check(self._rest)
            self._rest = b""
        if self._violations:
            raise self._error()
        if self._format is None:
            raise InvalidDataset.at("file", "holds no example; it needs one JSON object a line")
        return Summary(self._format, self._size_bytes, f"sha256:{self._hash.hexdigest()}", self._num_examples)

    def _check(self, line: bytes) -> None:
        self._line_number += 1
        if self._line_number == 1:
            line = line.removeprefix(BOM)
        if not line.strip():
            return
        try:
            self._check_example(line)
        except BadExample as error:
            self._blame(str(error))
        if len(self._violations) >= MAX_VIOLATIONS:
            raise self._error()

    def _check_example(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise BadExample(f"is longer than {MAX_LINE_BYTES} bytes")
        value = parse_line(line)
        if self._format is None:
            self._format = detect_format(value)
        parse_example(self._format, value)
        self._num_examples += 1
        if self._num_examples > MAX_EXAMPLES:
            raise PayloadTooLarge(f"a dataset may have at most {MAX_EXAMPLES} examples; split it")

    def _blame(self, why: str) -> None:
        self._violations.append(FieldViolation(f"line {self._line_number}", why))

    def _error(self) -> InvalidDataset:
        first = self._violations[0]
        more = len(self._violations) - 1
        also = f" (and {more} more)" if more else ""
        return InvalidDataset(f"{first.field}: {first.description}{also}", violations=self._violations)


def parse_line(line: bytes) -> object:
    """The JSON value of a line. Raises BadExample."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise BadExample("is not UTF-8") from None
    except RecursionError:
        raise BadExample("is nested too deeply") from None
    except ValueError as error:
        raise BadExample(f"is not JSON: {error}") from None


def parse_file_name(file_name: str) -> str:
    """Check a label that a caller gave. No path is ever made of it. Raises InvalidDataset."""
    if not 1 <= len(file_name) <= 255:
        raise InvalidDataset.at("header.file_name", "must have 1 to 255 characters")
    if any(char in "/\\" or not char.isprintable() for char in file_name) or file_name in (".", ".."):
        raise InvalidDataset.at("header.file_name", "must be the name of a file, without a path")
    return file_name
