"""Untrusted input into typed requests, or an InvalidArgument that names the field."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from services.kit.errors import FieldViolation, InvalidArgument, UnsupportedParameter

UNSUPPORTED = "unsupported_parameter"
"""Type of the pydantic error that says: known, but not offered here."""

M = TypeVar("M", bound=BaseModel)

_MAX_VIOLATIONS = 5
_MAX_PROBLEMS = 100


def parse_json(body: bytes, model: type[M]) -> M:
    """Parse a JSON object strictly: no NaN, no number for a text. Raises InvalidArgument."""
    if not body:
        raise InvalidArgument("the request has no body; send a JSON object")
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgument(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidArgument("the body must be a JSON object")
    return validate(data, model, strict=True)


def validate(data: dict[str, Any], model: type[M], *, strict: bool) -> M:
    """Make a request of parsed data. strict: texts are not read as numbers, as a form or a query needs it."""
    try:
        return model.model_validate(data, strict=strict)
    except ValidationError as error:
        raise _explain(
            error.errors(include_url=False, include_context=False, include_input=False), data
        ) from None


def _explain(problems: list[ErrorDetails], data: dict[str, Any]) -> InvalidArgument:
    found = _without_echoes([(_path(problem, data), problem) for problem in problems[:_MAX_PROBLEMS]])
    reasons: dict[str, list[str]] = {}
    for path, problem in found:
        reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        reason = reason.replace("Field required", "is required")
        if reason not in reasons.setdefault(path, []):
            reasons[path].append(reason)
    violations = [FieldViolation(path, " or ".join(why)) for path, why in reasons.items()][:_MAX_VIOLATIONS]
    message = "; ".join(f"{v.field or 'the body'}: {_readable(v.description)}" for v in violations)
    unsupported = any(problem["type"] == UNSUPPORTED for problem in problems)
    return (UnsupportedParameter if unsupported else InvalidArgument)(message, violations=violations)


def _without_echoes(found: list[tuple[str, ErrorDetails]]) -> list[tuple[str, ErrorDetails]]:
    """Leave out what a union's other members say.

    A list that is too long is also no text, and its items are no numbers: the client wants to know the first only.
    """
    firm = {path for path, problem in found if not problem["type"].endswith("_type")}
    return [
        (path, problem)
        for path, problem in found
        if not any(_is_inside(path, outer) for outer in firm)
        and (not problem["type"].endswith("_type") or not _is_settled(path, firm, found))
    ]


def _is_settled(path: str, firm: set[str], found: list[tuple[str, ErrorDetails]]) -> bool:
    """Whether something better is known of this path than its wrong type."""
    return path in firm or any(_is_inside(inner, path) for inner, _ in found)


def _is_inside(path: str, outer: str) -> bool:
    return path != outer and path.startswith(outer) and (not outer or path[len(outer)] in ".[")


def _readable(reason: str) -> str:
    return f"must be {reason}" if reason.startswith(("a ", "an ", "greater", "less", "'", "None")) else reason


def _path(problem: ErrorDetails, data: Any) -> str:
    """`messages[0].content`: pydantic's location without the names of the union members that it tried."""
    path = ""
    last = len(problem["loc"]) - 1
    for position, part in enumerate(problem["loc"]):
        if isinstance(part, int) and isinstance(data, list) and part < len(data):
            path, data = f"{path}[{part}]", data[part]
        elif isinstance(data, dict) and part in data:
            path, data = f"{path}.{part}" if path else str(part), data[part]
        elif isinstance(data, dict) and problem["type"] == "missing" and position == last:
            path = f"{path}.{part}" if path else str(part)
    return path
