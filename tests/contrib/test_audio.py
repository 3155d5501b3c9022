"""Sound cards through a stand-in for PortAudio; files and resampling with the real libraries."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
import time
from contextlib import aclosing
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from echostream import AudioFormat, AudioFrame, ConfigurationError, Playout
from echostream.contrib import audio

FORMAT = AudioFormat(16_000, 1, frame=160)
HEARD = AudioFormat(16_000, 1)

needs_files = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("soundfile", "soxr")),
    reason="soundfile and soxr are not here: pip install 'echostream[audio]'",
)


class Card(ModuleType):
    """PortAudio with one card that is as fast as it can be; a thread of its own calls back."""

    class PortAudioError(Exception):
        pass

    class CallbackStop(Exception):  # noqa: N818 - its name there
        pass

    class CallbackAbort(Exception):  # noqa: N818
        pass

    def __init__(self, blocks: int = 20, age: float = 0.003) -> None:
        super().__init__("sounddevice")
        self.blocks = blocks
        self.age = age
        self.opened: list[dict] = []
        self.closed = 0
        self.played: list[np.ndarray] = []

    def InputStream(self, **options):
        return _Stream(self, options, True)

    def OutputStream(self, **options):
        return _Stream(self, options, False)


class _Stream:
    def __init__(self, card: Card, options: dict, is_input: bool) -> None:
        if options["device"] == "broken":
            raise Card.PortAudioError("Invalid sample rate\n [PaErrorCode -9997]")
        card.opened.append(options)
        self._card, self._options, self._is_input = card, options, is_input
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._card.closed += 1

    def _run(self):
        card, options = self._card, self._options
        clock = SimpleNamespace(
            currentTime=7.0,
            inputBufferAdcTime=7.0 - card.age,
            outputBufferDacTime=7.0 + card.age,
        )
        size = options.get("blocksize", 160)
        block = np.zeros((size, options["channels"]), options["dtype"])
        for number in range(card.blocks):
            if self._is_input:
                block[:] = number / 100
            try:
                options["callback"](block, size, clock, None)
            except (Card.CallbackStop, Card.CallbackAbort):
                break
            finally:
                if not self._is_input:
                    card.played.append(block.copy())
        if "finished_callback" in options:
            options["finished_callback"]()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


async def captured(count: int, **options) -> list[AudioFrame]:
    got: list[AudioFrame] = []
    async with aclosing(audio.capture(FORMAT, **options)) as frames:
        async for frame in frames:
            got.append(frame)
            if len(got) == count:
                break
    return got


def test_what_the_microphone_hears(card: Card) -> None:
    before = time.monotonic_ns()
    got = asyncio.run(captured(20, device=3))
    after = time.monotonic_ns()
    assert [frame.timestamp for frame in got] == [160 * n for n in range(20)]
    assert [frame.sequence_number for frame in got] == list(range(20))
    for number, frame in enumerate(got):
        assert frame.samples[0, 0] == np.float32(number / 100)  # a copy, not the card's buffer
        assert before < frame.capture_ts + 3_000_000 < after + 1_000
    assert card.opened[0]["device"] == 3
    assert card.opened[0]["blocksize"] == 160
    assert card.closed == 1


def test_a_card_without_a_clock(card: Card) -> None:
    card.age = 0.0
    before = time.monotonic_ns()
    got = asyncio.run(captured(5))
    for frame in got:
        assert before < frame.capture_ts + 10_000_000  # a block was captured while it was filled
        assert frame.capture_ts + 10_000_000 <= time.monotonic_ns()


def test_a_program_that_does_not_keep_up_loses_the_oldest(card: Card) -> None:
    card.blocks = 80

    async def slow() -> list[AudioFrame]:
        async with aclosing(audio.capture(FORMAT)) as frames:
            got = [await anext(frames)]
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
            await asyncio.sleep(0)
            while got[-1].sequence_number < 79:
                got.append(await anext(frames))
            return got

    got = asyncio.run(slow())
    assert len(got) in (50, 51)  # the first one was taken before, or was among the oldest
    assert [frame.sequence_number for frame in got][-50:] == list(range(30, 80))
    assert [frame.timestamp for frame in got][-50:] == list(range(30 * 160, 80 * 160, 160))


def test_the_loudspeaker_pulls_to_the_end(card: Card) -> None:
    card.blocks = 1000

    async def main() -> Playout:
        playout = Playout(HEARD)
        tone = 0.5 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(3200)).astype(np.float32)
        now = time.monotonic_ns()
        for number in range(10):
            part = tone[number * 320 : (number + 1) * 320, None]
            frame = AudioFrame(part, HEARD, number * 320, None, number)
            playout.push(frame, now - 200_000_000 + number * 20_000_000)
        playout.end()
        await audio.play(playout, device="card")
        return playout

    playout = asyncio.run(main())
    assert card.opened[0]["channels"] == 1
    assert card.opened[0]["dtype"] == "float32"
    assert card.closed == 1
    assert len(card.played) < 1000
    assert playout.statistics().pulled_frames > 1000  # the card hurries: the rest is passed over
    assert np.abs(np.concatenate(card.played)).max() > 0.3


def test_what_goes_wrong_in_the_callback_arrives(card: Card) -> None:
    class Broken(Playout):
        def pull_into(self, out, now_ns=None):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(audio.play(Broken(HEARD)))
    assert not card.played[0].any()


def test_a_card_that_cannot_be_used(card: Card) -> None:
    with pytest.raises(audio.DeviceError, match=r"capture on device 'broken' at 16000 Hz.*lists"):
        asyncio.run(captured(1, device="broken"))
    with pytest.raises(audio.DeviceError, match="playback on device 'broken'"):
        asyncio.run(audio.play(Playout(HEARD), device="broken"))


@pytest.mark.parametrize(
    ("source", "words"),
    [(None, r"pip install 'echostream\[audio\]'"), ("raise OSError('no')", "libportaudio2")],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, source, words) -> None:
    if source is None:
        monkeypatch.setitem(sys.modules, "sounddevice", None)
    else:
        (tmp_path / "sounddevice.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(audio.DeviceError, match=words):
        asyncio.run(captured(1))


def test_without_the_extra_files_say_so(tmp_path, monkeypatch) -> None:
    for name in ("soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(audio.AudioFileError, match=r"need soundfile: pip install"):
        audio.read_audio(tmp_path / "a.flac")
    with pytest.raises(audio.AudioFileError, match="soundfile"):
        audio.AudioWriter(tmp_path / "a.flac", 48_000, 1)
    samples = np.zeros((10, 1), np.float32)
    assert audio.resample(samples, 48_000, 48_000) is samples
    with pytest.raises(ConfigurationError, match="needs soxr: pip install"):
        audio.resample(samples, 44_100, 48_000)


@needs_files
def test_files_of_many_kinds(tmp_path) -> None:
    t = np.arange(48_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * t))[:, None].astype(np.float32)
    for name in ("a.flac", "a.ogg", "a.wav"):
        audio.AudioWriter.check(tmp_path / name)
        writer = audio.AudioWriter(tmp_path / name, 48_000, 1)
        writer.write(tone[:24_000])
        writer.write((tone[24_000:] * 32767).astype(np.int16))
        writer.close()
        samples, rate = audio.read_audio(tmp_path / name)
        assert rate == 48_000
        assert samples.shape == (48_000, 1)
        assert np.sqrt(np.mean((samples - tone) ** 2)) < 0.02
    for bad in ("a.xyz", "a"):
        with pytest.raises(audio.AudioFileError, match="no format is called"):
            audio.AudioWriter.check(tmp_path / bad)
    (tmp_path / "bad.flac").write_text("no sound")
    for name in ("bad.flac", "missing.flac"):
        with pytest.raises(audio.AudioFileError, match=f"cannot read .*{name}"):
            audio.read_audio(tmp_path / name)
    with pytest.raises(audio.AudioFileError, match="cannot write"):
        audio.AudioWriter(tmp_path / "no" / "such.flac", 48_000, 1)


@needs_files
def test_resampling_keeps_the_tone_and_the_type() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100)[:, None] * 20_000
    out = audio.resample(tone.astype(np.int16), 44_100, 48_000)
    assert out.dtype == np.int16
    assert out.shape == (48_000, 1)
    wanted = np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000)[:, None] * 20_000
    assert np.abs(out - wanted)[2_000:-2_000].max() < 4
