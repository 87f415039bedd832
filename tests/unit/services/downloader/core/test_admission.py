"""Who is let in, with an inspector that says what a test tells it to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from services.downloader.core.admission import Admission, Policy, most_important
from services.downloader.core.models import (
    Facts,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Inspection,
    LeftOut,
    ModelKind,
    StoredFile,
)
from services.downloader.core.sources import LocalFile, RemoteFile, Resolved
from services.kit.errors import DigestMismatch, PermissionDenied

SIGNATURE = StoredFile("model.sig", 1, f"sha256:{'1' * 64}")
WEIGHTS = StoredFile("m.gguf", 1, f"sha256:{'2' * 64}")
KEYS = (Path("/keys/a.pub"),)


class ToldInspector:
    """`Inspector` that answers as it is told. archives, scanned, digests: what it was asked about."""

    def __init__(self, license: str = "", left_out: Sequence[LeftOut] = ()) -> None:
        self.inspection = Inspection(
            Facts(ModelKind.TEXT_GENERATION, Format.GGUF, license=license), left_out=tuple(left_out)
        )
        self.signed = FindingKind.SIGNED
        self.archives: Sequence[Path] = ()
        self.scanned: list[LeftOut] = []
        self.digests: Mapping[str, str] = {}

    async def inspect(self, files: Mapping[str, Path], archives: Sequence[Path] = ()) -> Inspection:
        self.archives = archives
        return self.inspection

    async def scan(self, left_out: LeftOut) -> Finding:
        self.scanned.append(left_out)
        return Finding.of(FindingKind.PICKLE, FindingSeverity.INFO, left_out.path, "left out")

    async def verify(self, signature: Path, keys: Sequence[Path], digests: Mapping[str, str]) -> Finding:
        self.digests = digests
        return Finding.of(self.signed, FindingSeverity.INFO, "model.sig", "told")


def offered(*names: str, left_out: Sequence[LeftOut] = ()) -> Resolved:
    files = tuple(RemoteFile(name, f"https://x/{name}") for name in names)
    return Resolved("hf:x/y@z", "z", "z", files, left_out=tuple(left_out))


async def inspected(
    inspector: ToldInspector,
    policy: Policy | None = None,
    *,
    stated: str = "",
    resolved: Resolved | None = None,
    fetched: Mapping[str, Path] | None = None,
) -> Inspection:
    admission = Admission(inspector, policy or Policy())
    files = [LocalFile("m.gguf", Path("/ingest/m.gguf"))]
    return await admission.inspect(files, resolved or offered("m.gguf"), fetched or {}, stated)


def test_a_licence_that_the_source_states_is_refused_before_anything_is_fetched() -> None:
    admission = Admission(ToldInspector(), Policy(licenses=("MIT",)))
    admission.check_offer(offered("m.gguf"), "mit")
    admission.check_offer(offered("m.gguf"), "")  # Its files may say one.
    with pytest.raises(PermissionDenied, match=r"'llama3\.1'.*downloader\.licenses: MIT"):
        admission.check_offer(offered("m.gguf"), "llama3.1")


async def test_a_licence_that_only_the_files_state_is_refused_when_they_are_here() -> None:
    policy = Policy(licenses=("MIT",))
    assert (await inspected(ToldInspector("mit"), policy)).facts.license == "MIT"
    for license_ in ("gemma", ""):
        with pytest.raises(PermissionDenied, match=r"downloader\.licenses"):
            await inspected(ToldInspector(license_), policy)


async def test_the_sources_word_on_the_licence_goes_before_the_files() -> None:
    told = await inspected(ToldInspector("gemma"), stated="apache-2.0")
    assert (told.facts.license, told.findings) == ("Apache-2.0", ())


async def test_no_licence_at_all_is_noted() -> None:
    (finding,) = (await inspected(ToldInspector())).findings
    assert (finding.kind, finding.severity) == (FindingKind.MISSING_LICENSE, FindingSeverity.WARNING)


async def test_what_was_left_out_is_scanned_where_it_is_here_and_named_where_it_is_not() -> None:
    inner = LeftOut("pkg/m.pkl", Path("/ingest/0.part"), "pkg/m.pkl")
    inspector = ToldInspector("MIT", [inner])
    resolved = offered("w.whl", left_out=[LeftOut("pytorch_model.bin"), LeftOut("b.pt", Path("/b.pt"))])
    told = await inspected(inspector, resolved=resolved, fetched={"w.whl": Path("/ingest/0.part")})
    assert inspector.archives == [Path("/ingest/0.part")]
    assert [(each.kind, each.path) for each in told.findings] == [
        (FindingKind.PICKLE, "b.pt"),
        (FindingKind.PICKLE, "pkg/m.pkl"),
        (FindingKind.SKIPPED, "pytorch_model.bin"),
    ]


async def test_a_zip_that_is_one_of_the_models_own_files_is_not_opened() -> None:
    inspector = ToldInspector("MIT")
    await inspected(inspector, fetched={"m.zip": Path("/ingest/m.gguf")})
    assert inspector.archives == []


async def test_of_very_many_pickles_some_are_scanned_and_all_are_named() -> None:
    many = [LeftOut(f"{number:03}.pkl", Path("/x.pkl")) for number in range(150)]
    inspector = ToldInspector("MIT")
    told = await inspected(inspector, resolved=offered("m.gguf", left_out=many))
    assert len(inspector.scanned) == 16
    assert len(told.findings) == 150
    assert len(most_important(told.findings)) == 100


def test_what_matters_most_is_recorded_first() -> None:
    info = Finding.of(FindingKind.SKIPPED, FindingSeverity.INFO, "a", "x")
    danger = Finding.of(FindingKind.PICKLE, FindingSeverity.DANGER, "b", "x")
    assert most_important([*[info] * 100, danger])[0] == danger


def test_what_a_stranger_wrote_becomes_one_line_that_can_be_shown() -> None:
    finding = Finding.of(FindingKind.PICKLE, FindingSeverity.INFO, "a\nb" * 999, "\x1b[2J" * 999)
    assert finding.path.isprintable()
    assert finding.message.isprintable()
    assert (len(finding.path), len(finding.message)) == (1024, 256)


def test_without_a_signature_nothing_is_fetched_where_one_is_required() -> None:
    admission = Admission(ToldInspector(), Policy(trusted_keys=KEYS, require_signature=True))
    admission.check_offer(offered("m.gguf", "model.sig"), "")
    admission.check_offer(offered("m.whl"), "")  # It may be in there.
    with pytest.raises(DigestMismatch, match="require_signature: the source has no signature"):
        admission.check_offer(offered("m.gguf"), "")


async def checked(
    policy: Policy, *, signature: bool = True, kind: FindingKind = FindingKind.SIGNED
) -> list[FindingKind]:
    inspector = ToldInspector()
    inspector.signed = kind
    path = Path("/store/sig") if signature else None
    found = await Admission(inspector, policy).check_signature([WEIGHTS, SIGNATURE], path)
    if signature and policy.trusted_keys:
        assert inspector.digests == {"m.gguf": "2" * 64}
    return [finding.kind for finding in found]


async def test_a_signature_is_checked_where_there_is_a_key_to_check_it_with() -> None:
    assert await checked(Policy()) == [FindingKind.UNSIGNED]
    assert await checked(Policy(), signature=False) == []
    assert await checked(Policy(trusted_keys=KEYS)) == [FindingKind.SIGNED]
    assert await checked(Policy(trusted_keys=KEYS), signature=False) == [FindingKind.UNSIGNED]
    assert await checked(Policy(trusted_keys=KEYS), kind=FindingKind.UNSIGNED) == [FindingKind.UNSIGNED]


async def test_what_nobody_trusted_signed_is_refused_where_that_is_required() -> None:
    policy = Policy(trusted_keys=KEYS, require_signature=True)
    assert await checked(policy) == [FindingKind.SIGNED]
    for signature, kind in ((False, FindingKind.SIGNED), (True, FindingKind.UNSIGNED)):
        with pytest.raises(DigestMismatch, match=r"downloader\.require_signature"):
            await checked(policy, signature=signature, kind=kind)
