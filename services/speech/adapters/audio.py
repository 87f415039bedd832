"""Files of any common format into samples: 16 kHz, 16 bits, one channel. Runs in a worker: what it reads is hostile."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from services.kit.errors import FieldViolation, InvalidAudio, PayloadTooLarge

SAMPLE_RATE_HZ: Final = 16_000

Samples = npt.NDArray[np.int16]

_FORMATS: Final = "WAV, MP3, M4A, MP4, OGG, Opus, FLAC, WebM, AAC, AIFF or AMR"
# Demuxers that read nothing but the file itself: no playlists (hls, dash, concat), which open others.
_DEMUXERS: Final = "aac,aiff,amr,asf,au,caf,flac,matroska,webm,mov,mp4,m4a,mp3,ogg,wav,w64"
# Some length that a library's buffers take in their stride.
_MAX_SOURCE_RATE_HZ: Final = 768_000
_FRAMES_PER_STEP: Final = 500


def decode(path: Path, *, max_duration_s: float) -> Generator[None, None, Samples]:
    """Decode the first audio stream; returns (num_samples,) int16. Yields now and then, so that others get a turn.

    Broken frames are left out, as players do. Raises InvalidAudio, and PayloadTooLarge as soon as the sound is longer
    than it may be: a small file can hold days.
    """
    max_samples = int(max_duration_s * SAMPLE_RATE_HZ)
    pcm = bytearray()
    try:
        # A file object, and no protocol allowed: nothing can be opened besides.
        with (
            path.open("rb") as file,
            av.open(
                file,
                mode="r",
                metadata_errors="ignore",
                options={"format_whitelist": _DEMUXERS, "protocol_whitelist": ""},
            ) as container,
        ):
            if not container.streams.audio:
                raise _invalid("holds no sound")
            converter = _Converter()
            for number, frame in enumerate(_frames(container), start=1):
                num_samples = frame.samples * SAMPLE_RATE_HZ // max(1, frame.sample_rate)
                # Before it is converted: one frame at 1 Hz can become gigabytes.
                if len(pcm) // 2 + num_samples > max_samples:
                    raise PayloadTooLarge(
                        f"the sound is longer than {max_duration_s:g} s, which is the limit; split the file",
                        metadata={"max_duration_s": f"{max_duration_s:g}"},
                    )
                pcm += converter.convert(frame)
                if number % _FRAMES_PER_STEP == 0:
                    yield
            pcm += converter.flush()
    except (av.FFmpegError, ValueError, OverflowError, MemoryError, UnicodeError) as error:
        raise _invalid(f"cannot be read as audio ({_reason(error)})") from error
    if not pcm:
        raise _invalid("holds no sound")
    return np.frombuffer(pcm, np.int16)


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            if isinstance(frame, AudioFrame):
                yield frame


class _Converter:
    """Frames to bytes of 16 kHz mono; a stream may change its own form half-way."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._form: tuple[str, str, int] | None = None

    def convert(self, frame: AudioFrame) -> bytes:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        done = b""
        if form != self._form:
            if not 1 <= frame.sample_rate <= _MAX_SOURCE_RATE_HZ:
                raise ValueError(f"a sample rate of {frame.sample_rate} Hz")
            done = self.flush()
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
            self._form = form
        frame.pts = None  # Times that jump would be filled with silence.
        return done + self._resample(frame)

    def flush(self) -> bytes:
        return self._resample(None)

    def _resample(self, frame: AudioFrame | None) -> bytes:
        if self._resampler is None:
            return b""
        return b"".join(part.to_ndarray().tobytes() for part in self._resampler.resample(frame))


def blocks(samples: Samples, *, block_s: float, search_s: float) -> Iterator[tuple[int, Samples]]:
    """Cut long sound into (offset in samples, part), each at the quietest moment of the last search_s of its block."""
    block, search, window = (int(seconds * SAMPLE_RATE_HZ) for seconds in (block_s, search_s, 0.1))
    start = 0
    while len(samples) - start > block:
        tail = samples[start + block - search : start + block].astype(np.float32)
        num_windows = len(tail) // window
        loudness = np.abs(tail[: num_windows * window].reshape(num_windows, window)).mean(
            axis=1
        )  # (num_windows,)
        end = start + block - search + int(loudness.argmin()) * window + window // 2
        yield start, samples[start:end]
        start = end
    yield start, samples[start:]


def _invalid(why: str) -> InvalidAudio:
    return InvalidAudio(f"the file {why}; send {_FORMATS}", violations=[FieldViolation("chunk", why)])


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
