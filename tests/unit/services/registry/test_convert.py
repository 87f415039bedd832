from enum import IntEnum
from typing import Any

import pytest

from lares.registry.v1 import registry_pb2 as pb
from services.registry.core import models


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (models.ModelKind, pb.ModelKind, "MODEL_KIND_"),
        (models.Capability, pb.Capability, "CAPABILITY_"),
        (models.ModelState, pb.ModelState, "MODEL_STATE_"),
        (models.VersionKind, pb.VersionKind, "VERSION_KIND_"),
        (models.VersionState, pb.VersionState, "VERSION_STATE_"),
        (models.Format, pb.Format, "FORMAT_"),
        (models.ModelChange, pb.ModelChange, "MODEL_CHANGE_"),
    ],
)
def test_enums_are_those_of_the_contract(ours: type[IntEnum], theirs: Any, prefix: str) -> None:
    assert {f"{prefix}{value.name}": value.value for value in ours} == dict(theirs.items())
