"""What a model must satisfy to be let in, and what is noted of one that does: licence, signature, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.downloader.core.concurrency import each
from services.downloader.core.licenses import canonical, check_license
from services.downloader.core.models import (
    Finding,
    FindingKind,
    FindingSeverity,
    Inspection,
    LeftOut,
    StoredFile,
)
from services.downloader.core.selection import SIGNATURE
from services.downloader.core.sources import Inspector, LocalFile, Resolved
from services.kit.errors import DigestMismatch

_ARCHIVES: Final = (".whl", ".zip")
_CTRANSLATE2: Final = "model.bin"
# Each scan is a process of its own, for one that kills its scanner must not hide the others.
_MAX_SCANS: Final = 16
_SCANS_AT_ONCE: Final = 2
_MAX_FINDINGS: Final = 100


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator asks of a model. licenses: that may be pulled, empty for all.

    trusted_keys: files of public keys and certificates.
    """

    licenses: tuple[str, ...] = ()
    trusted_keys: tuple[Path, ...] = ()
    require_signature: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The checks of a pull, in the order of its steps."""

    inspector: Inspector
    policy: Policy

    def check_offer(self, resolved: Resolved, stated_license: str) -> None:
        """Before anything is fetched: what the source says already. Raises PermissionDenied, DigestMismatch."""
        if stated_license:
            check_license(stated_license, self.policy.licenses)
        names = [file.path for file in resolved.files]
        if self.policy.require_signature and SIGNATURE not in names and not any(map(_is_archive, names)):
            raise _unsigned("the source has no signature")

    async def inspect(
        self, files: Sequence[LocalFile], resolved: Resolved, fetched: Mapping[str, Path], stated_license: str
    ) -> Inspection:
        """When all is here. The facts that it returns know the licence. fetched: by the source's names.

        Raises UnsupportedFormat, PermissionDenied, DigestMismatch, WorkerLost.
        """
        own = {file.local for file in files}
        archives = [local for name, local in fetched.items() if _is_archive(name) and local not in own]
        told = await self.inspector.inspect({file.path: file.local for file in files}, archives)
        license_ = canonical(stated_license or told.facts.license)
        check_license(license_, self.policy.licenses)
        # Weights of CTranslate2 are called as a pickle is where another archive has their vocabulary.
        is_taken = any(file.path == _CTRANSLATE2 for file in files)
        left_out = [left for left in told.left_out if not (is_taken and left.path.endswith(_CTRANSLATE2))]
        findings = [*told.findings, *await self._scanned((*resolved.left_out, *left_out))]
        if not license_:
            what = "neither its source nor its files say a licence"
            findings.append(Finding.of(FindingKind.MISSING_LICENSE, FindingSeverity.WARNING, "", what))
        return replace(told, facts=replace(told.facts, license=license_), findings=tuple(findings))

    async def check_signature(self, files: Sequence[StoredFile], signature: Path | None) -> list[Finding]:
        """When all digests are known. files: all that came. signature: where it lies, if it was among them.

        Raises DigestMismatch for a wrong one, and for none where one is required; FailedPrecondition for a key that
        cannot be used.
        """
        if signature is None:
            if not self.policy.trusted_keys:
                return []
            finding = _of_unsigned("nobody signed it")
        elif not self.policy.trusted_keys:
            finding = _of_unsigned("it is signed; downloader.trusted_keys names no key to check that with")
        else:
            digests = {
                file.path: file.digest.removeprefix("sha256:") for file in files if file.path != SIGNATURE
            }
            finding = await self.inspector.verify(signature, self.policy.trusted_keys, digests)
        if self.policy.require_signature and finding.kind is not FindingKind.SIGNED:
            raise _unsigned(finding.message)
        return [finding]

    async def _scanned(self, left_out: Sequence[LeftOut]) -> list[Finding]:
        to_scan = [left for left in left_out if left.local is not None][:_MAX_SCANS]
        found = [_skipped(left) for left in left_out if left not in to_scan]

        async def scan(left: LeftOut) -> None:
            found.append(await self.inspector.scan(left))

        await each(to_scan, scan, at_once=_SCANS_AT_ONCE)
        return sorted(found, key=lambda finding: finding.path)


def most_important(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """As many as are recorded, what matters most first."""
    return tuple(sorted(findings, key=lambda finding: -finding.severity)[:_MAX_FINDINGS])


def _skipped(left_out: LeftOut) -> Finding:
    what = "left out by its name: such files may run code when they are loaded"
    return Finding.of(FindingKind.SKIPPED, FindingSeverity.INFO, left_out.path, what)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(_ARCHIVES)


def _of_unsigned(why: str) -> Finding:
    return Finding.of(FindingKind.UNSIGNED, FindingSeverity.INFO, "", why)


def _unsigned(why: str) -> DigestMismatch:
    return DigestMismatch(f"downloader.require_signature: {why}; nothing was recorded")
