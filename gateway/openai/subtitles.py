"""Subtitles: SubRip (.srt) and WebVTT (https://www.w3.org/TR/webvtt1/)."""

from collections.abc import Sequence

Cue = tuple[float, float, str]
"""(start in seconds, end in seconds, text)."""


def srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered from 1, comma before the milliseconds."""
    blocks = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_lines(text)}\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    )
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT."""
    blocks = (f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_lines(text)}\n" for start, end, text in cues)
    return "\n".join(["WEBVTT\n", *blocks])


def _clock(at_s: float, point: str) -> str:
    milliseconds = round(at_s * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _lines(text: str) -> str:
    # An empty line or an arrow inside a cue would end it.
    return "\n".join(line for line in text.replace("-->", "->").splitlines() if line.strip())
