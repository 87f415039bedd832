"""What a pickle would do if somebody loaded it, read out of its opcodes. It runs in a worker, and nothing is loaded.

A report, not a permission: a scan that finds nothing has found nothing, and such files are left out all the same.
"""

import logging
from pathlib import PurePosixPath
from typing import BinaryIO, Final

from services.downloader.core.models import Finding, FindingKind, FindingSeverity

_MAX_NAMED: Final = 5


def scan_pickle(path: str, file: BinaryIO) -> Finding:
    """path: by its suffix the kind of file is told. file: can be sought in."""
    from picklescan.scanner import SafetyLevel, scan_bytes

    # Its own words go to the log; what it found comes back.
    logging.getLogger("picklescan").disabled = True
    try:
        result = scan_bytes(file, path, PurePosixPath(path).suffix.lower())
    except Exception as error:  # A stranger's file: the library raises whatever parsing it ends in.
        return unscanned(path, str(error) or type(error).__name__)
    by_danger = {SafetyLevel.Dangerous: 0, SafetyLevel.Suspicious: 1, SafetyLevel.Innocuous: 2}
    found = sorted((by_danger[each.safety], f"{each.module}.{each.name}") for each in result.globals)
    names = ", ".join(name[:60] for _, name in found[:_MAX_NAMED])
    more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    if not found:
        what = "left out; no import was found in it"
    else:
        verdict = ("dangerous", "not known to be harmless", "the usual ones")[found[0][0]]
        what = f"left out; loaded, it would import {names}{more}: {verdict}"
    severities = (FindingSeverity.DANGER, FindingSeverity.WARNING, FindingSeverity.INFO)
    severity = severities[found[0][0]] if found else FindingSeverity.INFO
    if result.scan_err and severity is FindingSeverity.INFO:
        severity, what = FindingSeverity.WARNING, f"{what}; it is damaged, or made to look so"
    return Finding.of(FindingKind.PICKLE, severity, path, what)


def unscanned(path: str, why: str) -> Finding:
    """What is told of one that no scan came through."""
    return Finding.of(
        FindingKind.PICKLE, FindingSeverity.WARNING, path, f"left out; it cannot be scanned: {why}"
    )
