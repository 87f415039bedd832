from enum import IntEnum
from typing import Any

import pytest

from lares.registry.v1 import registry_pb2 as pb
from services.kit.errors import InvalidArgument
from services.registry import convert
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
        (models.FindingKind, pb.FindingKind, "FINDING_KIND_"),
        (models.FindingSeverity, pb.FindingSeverity, "FINDING_SEVERITY_"),
        (models.ModelChange, pb.ModelChange, "MODEL_CHANGE_"),
    ],
)
def test_enums_are_those_of_the_contract(ours: type[IntEnum], theirs: Any, prefix: str) -> None:
    assert {f"{prefix}{value.name}": value.value for value in ours} == dict(theirs.items())


def test_findings_travel_both_ways() -> None:
    told = models.Finding(models.FindingKind.SIGNED, models.FindingSeverity.INFO, "model.sig", "by a.pub")
    version = models.Version("m", "v", findings=(told,))
    assert convert.version_from_proto(convert.version_to_proto(version), "m", "v").findings == (told,)
    newer = pb.Version(findings=[pb.Finding(kind=99)])  # type: ignore[arg-type]  # Of a later contract.
    with pytest.raises(InvalidArgument, match=r"version\.findings\[0\]\.kind"):
        convert.version_from_proto(newer, "m", "v")
