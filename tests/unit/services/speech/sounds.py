"""Sounds for tests, made here."""

import io
import wave

import av
import numpy as np


def tone(
    duration_s: float = 1.0, sample_rate_hz: int = 16_000
) -> "np.ndarray[tuple[int], np.dtype[np.int16]]":
    """(num_samples,) int16: 440 Hz."""
    times = np.arange(int(duration_s * sample_rate_hz)) / sample_rate_hz
    return (np.sin(2 * np.pi * 440 * times) * 8000).astype(np.int16)


def wav(duration_s: float = 1.0, sample_rate_hz: int = 16_000) -> bytes:
    """A WAV file of a tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate_hz)
        sound.writeframes(tone(duration_s, sample_rate_hz).tobytes())
    return file.getvalue()


def encoded(container: str, codec: str, duration_s: float = 1.0, sample_rate_hz: int = 48_000) -> bytes:
    """A file of a tone as PyAV writes it: ("ogg", "libopus"), ("mp3", "mp3"), ("flac", "flac")."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=sample_rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(
            tone(duration_s, sample_rate_hz)[None], format="s16", layout="mono"
        )
        frame.sample_rate = sample_rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


def mutated(sound: bytes, seed: int) -> bytes:
    """Broken in one of the ways in which files are: bytes flipped, cut off, cut out, said twice, or all noise."""
    random = np.random.default_rng(seed)
    broken = bytearray(sound)
    match seed % 6:
        case 0:  # Its head, where sizes and formats are.
            for position in random.integers(0, min(64, len(broken)), size=4):
                broken[position] = int(random.integers(256))
        case 1:
            for position in random.integers(0, len(broken), size=max(1, len(broken) // 50)):
                broken[position] = int(random.integers(256))
        case 2:
            del broken[int(random.integers(0, len(broken))) :]
        case 3:
            start = int(random.integers(0, len(broken)))
            del broken[start : start + int(random.integers(1, 200))]
        case 4:
            start = int(random.integers(0, len(broken)))
            broken[start:start] = broken[: int(random.integers(1, 200))]
        case _:
            broken = bytearray(random.bytes(int(random.integers(1, 5000))))
    return bytes(broken)
