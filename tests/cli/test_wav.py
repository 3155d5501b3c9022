"""WAV files: what is written is read, and what cannot be read is named."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from echostream.cli.wav import WavError, read_wav, write_wav


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_round_trip(tmp_path: Path, channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = random.integers(-32768, 32767, (1234, channels), np.int16, endpoint=True)
    write_wav(tmp_path / "a.wav", samples, 44_100)
    clip = read_wav(tmp_path / "a.wav")
    assert clip.sample_rate == 44_100
    assert clip.duration == 1234 / 44_100
    assert np.array_equal(clip.samples, samples)


def test_another_reader_takes_what_is_written(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([[1, -2], [3, -4]], np.int16), 48_000)
    data = (tmp_path / "a.wav").read_bytes()
    assert data[:4] + data[8:16] == b"RIFFWAVEfmt "
    assert struct.unpack("<HHIIHH", data[20:36]) == (1, 2, 48_000, 192_000, 4, 16)
    assert data[44:] == struct.pack("<4h", 1, -2, 3, -4)


def wav(path: Path, width: int, frames: int, format: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(48_000)
        file.writeframes(bytes(2 * width * frames))
    data = bytearray(path.read_bytes())
    data[20:22] = struct.pack("<H", format)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("width", "frames", "format", "said"),
    [
        (1, 9, 1, "8-bit"),
        (3, 9, 1, "24-bit"),
        (4, 9, 1, "32-bit"),
        (4, 9, 3, "not 16-bit PCM"),
        (2, 0, 1, "0 frames"),
    ],
)
def test_what_is_not_16_bit_pcm(
    tmp_path: Path, width: int, frames: int, format: int, said: str
) -> None:
    path = wav(tmp_path / "odd.wav", width, frames, format)
    with pytest.raises(WavError, match=said) as raised:
        read_wav(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"ID3" + bytes(100)])
def test_what_is_not_a_wav(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(WavError, match="is not a WAV file"):
        read_wav(tmp_path / "a.wav")


def test_a_file_that_was_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", 2, 100)
    path.write_bytes(path.read_bytes()[:-41])
    assert len(read_wav(path).samples) == 89


def test_every_cut_is_read_or_refused(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", 2, 4)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert len(read_wav(path).samples) <= 4
        except WavError:
            assert length < 48
