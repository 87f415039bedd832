from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.kit.errors import InvalidAudio, PayloadTooLarge
from services.speech.adapters.audio import SAMPLE_RATE_HZ, Samples, blocks, decode
from tests.unit.services.speech.sounds import encoded, mutated, tone, wav


def decoded(path: Path, sound: bytes, max_duration_s: float = 60.0) -> Samples:
    path.write_bytes(sound)
    work = decode(path, max_duration_s=max_duration_s)
    while True:
        try:
            next(work)
        except StopIteration as done:
            samples: Samples = done.value
            return samples


@pytest.mark.parametrize(
    "make",
    [
        lambda: wav(),
        lambda: wav(sample_rate_hz=8000),
        lambda: wav(sample_rate_hz=48000),
        lambda: encoded("ogg", "libopus"),
        lambda: encoded("mp3", "mp3"),
        lambda: encoded("flac", "flac"),
        lambda: encoded("webm", "libopus"),
        lambda: encoded("mp4", "aac"),
    ],
)
def test_common_formats_become_16_khz_mono(tmp_path: Path, make: Callable[[], bytes]) -> None:
    samples = decoded(tmp_path / "f", make())
    assert samples.dtype == np.int16
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(1.0, abs=0.1)
    assert np.abs(samples).max() > 4000


@pytest.mark.parametrize(
    "sound", [b"", b"RIFF", b"not a sound", wav()[:44], b"\x00" * 5000, b"\x1a\x45\xdf\xa3" * 100]
)
def test_what_is_not_audio_is_told_with_what_is_taken(tmp_path: Path, sound: bytes) -> None:
    with pytest.raises(InvalidAudio, match="send WAV, MP3"):
        decoded(tmp_path / "f", sound)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{other}'\n",
    ],
)
def test_playlists_open_no_other_file(tmp_path: Path, playlist: str) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(wav())
    with pytest.raises(InvalidAudio):
        decoded(tmp_path / "f.m3u8", playlist.format(other=other).encode())


def test_sound_past_its_limit_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge, match="longer than 5 s"):
        decoded(tmp_path / "f", wav(6.0), max_duration_s=5.0)
    lying = bytearray(wav(1.0))
    lying[24:28] = (1).to_bytes(4, "little")  # 1 Hz: 16,000 samples become 4 hours.
    with pytest.raises(PayloadTooLarge):
        decoded(tmp_path / "f", bytes(lying), max_duration_s=600.0)


def test_broken_files_are_heard_or_refused_and_nothing_else(tmp_path: Path) -> None:
    sounds = [
        wav(0.2),
        encoded("ogg", "libopus", 0.2),
        encoded("mp3", "mp3", 0.2),
        encoded("flac", "flac", 0.2),
    ]
    num_refused = 0
    for seed in range(500):
        try:
            decoded(tmp_path / "f", mutated(sounds[seed % len(sounds)], seed), max_duration_s=600.0)
        except (InvalidAudio, PayloadTooLarge):
            num_refused += 1
    assert 50 < num_refused < 500


def test_long_sound_is_cut_where_it_is_quiet() -> None:
    sound = tone(10.0)
    sound[int(3.5 * SAMPLE_RATE_HZ) : int(3.8 * SAMPLE_RATE_HZ)] = 0
    parts = list(blocks(sound, block_s=4.0, search_s=1.0))
    assert parts[1][0] / SAMPLE_RATE_HZ == pytest.approx(3.65, abs=0.15)
    assert np.array_equal(np.concatenate([part for _, part in parts]), sound)
    assert all(len(part) <= 4 * SAMPLE_RATE_HZ for _, part in parts)


def test_short_sound_is_one_block() -> None:
    assert [(start, len(part)) for start, part in blocks(tone(1.0), block_s=4.0, search_s=1.0)] == [
        (0, 16_000)
    ]
