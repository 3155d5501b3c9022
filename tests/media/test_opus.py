"""Opus with the real library: what goes in comes out, gaps are filled, and what is no packet is
refused."""

from __future__ import annotations

import numpy as np
import pytest
from opus_support import LIBRARIES, needs_opus

from echostream import AudioFormat, ConfigurationError, ProtocolError
from echostream.contrib import opus
from echostream.contrib.opus import Opus, packet_frames
from echostream.media.codec import PCM, Codec, find_codec, known_codecs

pytestmark = needs_opus

SEED = 20261122


def chord(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """Three tones with a slow swell, float32."""
    t = np.arange(int(rate * seconds)) / rate
    wave = sum(np.sin(2 * np.pi * f * t) for f in (220.0, 331.0, 497.0)) / 3
    wave *= 0.6 + 0.2 * np.sin(2 * np.pi * 2.0 * t)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def packets(codec: Codec, format: AudioFormat, signal: np.ndarray) -> list[bytes]:
    encoder = codec.encoder(format)
    return [
        encoder.encode(signal[at : at + format.frame])
        for at in range(0, len(signal) - format.frame + 1, format.frame)
    ]


def ratio_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10(np.mean(wanted**2.0) / np.mean((wanted - got) ** 2.0))


@pytest.fixture(params=LIBRARIES or ["none"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each libopus in turn."""
    found = opus.open_library(request.param)
    monkeypatch.setattr(opus, "_load", lambda: found)
    return str(request.param)


@pytest.mark.parametrize("sample_type", ["float32", "int16"])
@pytest.mark.parametrize("rate", opus.RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_goes_in_comes_out(library: str, rate: int, channels: int, sample_type: str) -> None:
    format = AudioFormat(rate, channels, sample_type)  # type: ignore[arg-type]
    codec = Opus(bitrate=64_000 * channels)
    signal = chord(rate, 1.0, channels)
    if sample_type == "int16":
        signal = (signal * 32767).astype(np.int16)
    sent = packets(codec, format, signal)
    decoder = codec.decoder(format)
    heard = np.concatenate([decoder.decode(packet) for packet in sent])
    assert heard.dtype == format.dtype
    assert heard.shape == signal.shape
    delay = codec.encoder(format).lookahead
    wanted = signal[: len(signal) - delay].astype(np.float64)
    tail = slice(rate // 5, None)
    assert ratio_db(wanted[tail], heard[delay:].astype(np.float64)[tail]) > 15
    assert 7_000 * channels < sum(map(len, sent)) < 9_000 * channels  # the bitrate of one second


@pytest.mark.parametrize("milliseconds", opus.FRAMES_MS)
def test_every_frame_length_and_what_a_packet_says_of_it(milliseconds: float) -> None:
    for rate in opus.RATES:
        format = AudioFormat(rate, 1, frame=int(rate * milliseconds / 1000))
        for packet in packets(Opus(application="voip"), format, chord(rate, 0.25)):
            assert packet_frames(packet, rate) == format.frame
            assert packet_frames(packet, 48_000) == round(48 * milliseconds)
            assert len(Opus().decoder(format).decode(packet)) == format.frame


def test_low_delay_has_less_of_it() -> None:
    format = AudioFormat(48_000, 2)
    assert Opus(application="lowdelay").encoder(format).lookahead == 120
    assert Opus().encoder(format).lookahead == 312


def test_concealment_goes_on_with_what_was_heard_and_fades(library: str) -> None:
    format = AudioFormat(48_000, 1)
    codec = Opus(bitrate=64_000)
    decoder = codec.decoder(format)
    for packet in packets(codec, format, chord(48_000, 0.5)):
        last = decoder.decode(packet)
    levels = []
    before = last
    for _ in range(12):
        made = decoder.conceal(format.frame)
        assert made.shape == (960, 1)
        assert abs(float(made[0, 0] - before[-1, 0])) < 0.1  # no click at the seam
        levels.append(float(np.sqrt(np.mean(made**2))))
        before = made
    assert levels[0] > 0.5 * float(np.sqrt(np.mean(last**2)))
    assert levels[-1] < 0.3 * levels[0]
    assert len(decoder.conceal(37)) == 37  # any number of frames


def test_the_packet_behind_a_gap_repeats_what_was_lost(library: str) -> None:
    """FEC: nearer to what was sent than concealment from the past alone can be."""
    format = AudioFormat(16_000, 1)
    codec = Opus(bitrate=32_000, application="voip", expected_loss=0.3)
    rng = np.random.default_rng(SEED)
    t = np.arange(32_000) / 16_000
    pitch = np.cumsum(110 + 40 * np.sin(2 * np.pi * 3 * t)) / 16_000
    voiced = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 12))
    signal = (0.2 * voiced * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)))[:, None]
    signal = (signal + 0.002 * rng.standard_normal((32_000, 1))).astype(np.float32)
    sent = packets(codec, format, signal)
    whole, guessed, repeated = (codec.decoder(format) for _ in range(3))
    errors = np.zeros(2)
    for number, packet in enumerate(sent[:-1]):
        truth = whole.decode(packet)
        if number % 5 == 4:
            without = guessed.conceal(320)
            with_fec = repeated.conceal(320, sent[number + 1])
            errors += [np.mean((truth - without) ** 2), np.mean((truth - with_fec) ** 2)]
        else:
            guessed.decode(packet)
            repeated.decode(packet)
    assert errors[1] < 0.5 * errors[0]


def test_hostile_packets_are_refused_and_the_next_one_is_decoded(library: str) -> None:
    format = AudioFormat(48_000, 2)
    codec = Opus(bitrate=64_000)
    good = packets(codec, format, chord(48_000, 0.1, 2))
    decoder = codec.decoder(format)
    rng = np.random.default_rng(SEED)
    refused = 0
    bad = [b"", b"\x03", b"\xff", bytes(8193), good[0][:1] + bytes(9000)]
    bad += [rng.bytes(int(size)) for size in rng.integers(1, 1500, 1500)]
    for packet in good:  # one byte changed, cut off, prolonged
        at = int(rng.integers(len(packet)))
        bad += [
            packet[:at] + bytes([packet[at] ^ 0x5A]) + packet[at + 1 :],
            packet[:at],
            packet * 3,
        ]
    for packet in bad:
        try:
            assert decoder.decode(packet).shape == (960, 2)
        except ProtocolError:
            refused += 1
        made = decoder.conceal(960, packet)  # it may be the one behind a gap, too
        assert made.shape == (960, 2)
    assert refused > 1000
    decoder.reset()
    assert decoder.decode(good[0]).shape == (960, 2)


@pytest.mark.parametrize("packet", [b"", b"\x03", b"\x03\x00", b"\x1b\x3f", b"\xfb\x31"])
def test_a_packet_of_no_length_or_of_too_much_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        packet_frames(packet, 48_000)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        (AudioFormat(44_100, 2), "resample to 48000"),
        (AudioFormat(48_000, 3), "1 or 2 channels"),
        (AudioFormat(48_000, 1, frame=1000), "not 1000"),
    ],
)
def test_a_format_that_opus_does_not_have(format: AudioFormat, words: str) -> None:
    for attempt in (Opus().check, Opus().encoder, Opus().decoder):
        with pytest.raises(ConfigurationError, match=words):
            attempt(format)


@pytest.mark.parametrize(
    "options",
    [
        {"bitrate": 5_999},
        {"bitrate": 510_001},
        {"application": "film"},
        {"expected_loss": 1.1},
        {"complexity": 11},
    ],
)
def test_settings_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Opus(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="encoder takes"):
        Opus().encoder(AudioFormat(48_000, 1)).encode(np.zeros((960, 2), np.float32))


def test_codecs_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_codec("pcm") is PCM
    assert find_codec("opus").name == "opus"
    assert known_codecs() == ["pcm", "opus"]
    assert isinstance(Opus(), Codec)
    for name in ("mp7", 3, None, "x" * 1000):
        with pytest.raises(ConfigurationError, match="known here: pcm, opus") as caught:
            find_codec(name)
        assert len(str(caught.value)) < 160
    monkeypatch.setattr(opus, "_load", lambda: None)
    assert known_codecs() == ["pcm"]
    with pytest.raises(ConfigurationError, match=r"pip install 'echostream\[opus\]'") as missing:
        find_codec("opus")
    assert "known here: pcm" in str(missing.value)


def test_what_is_no_libopus_is_passed_over(tmp_path) -> None:
    text = tmp_path / "libopus.so"
    text.write_text("not a library")
    assert opus.open_library(str(text)) is None
    assert opus.open_library(str(tmp_path / "missing.so")) is None


def test_pcm_is_a_codec_too() -> None:
    format = AudioFormat(16_000, 2, "int16", frame=4)
    samples = np.arange(8, dtype=np.int16).reshape(4, 2)
    packet = PCM.encoder(format).encode(samples)
    decoder = PCM.decoder(format)
    assert packet == samples.astype("<i2").tobytes()
    assert np.array_equal(decoder.decode(packet), samples)
    assert not decoder.conceals
    assert not decoder.conceal(3).any()
    with pytest.raises(ProtocolError):
        decoder.decode(packet[:-1])
