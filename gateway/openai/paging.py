"""OpenAI's lists: `after` names the last thing seen, `limit` how many more."""

from typing import Annotated, TypeVar

from pydantic import Field

from gateway.openai.common import RequestModel, ResponseModel
from services.kit.errors import InvalidArgument

R = TypeVar("R", bound="Identified")


class Identified(ResponseModel):
    """What a list holds."""

    id: str


class ListQuery(RequestModel):
    """Which page. after: id of the last thing of the page before."""

    after: Annotated[str, Field(max_length=256)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def page(items: list[R], *, after: str | None, limit: int) -> tuple[list[R], bool]:
    """(the page, whether there is more). Raises InvalidArgument if `after` is none of the items."""
    start = 0
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise InvalidArgument.at("after", "is none of the ids listed here")
        start = ids.index(after) + 1
    return items[start : start + limit], start + limit < len(items)
