"""AudioFormat and AudioFrame: what they refuse, and samples on their way to bytes and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echostream.errors import ConfigurationError, ProtocolError
from echostream.media.frame import AudioFormat, AudioFrame


def test_format_defaults_to_20_ms_of_float32():
    fmt = AudioFormat(48_000, 2)
    assert (fmt.sample_type, fmt.frame, fmt.frame_bytes, fmt.dtype) == (
        "float32",
        960,
        7680,
        np.float32,
    )
    assert fmt.frame_duration == 0.02
    assert fmt == AudioFormat(48_000, 2, "float32", 960)
    assert AudioFormat(np.int64(44_100), 1).frame == 882
    assert type(AudioFormat(np.int64(44_100), 1).sample_rate) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.channels = 3
    assert AudioFormat(**dataclasses.asdict(fmt)) == fmt


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((7_999, 1), "8000 to 192000"),
        ((192_001, 1), "8000 to 192000"),
        (("48000", 1), "integer"),
        ((48_000.0, 1), "integer"),
        ((True, 1), "integer"),
        ((48_000, 0), "1 .mono."),
        ((48_000, 1000), "up to 64"),
        ((48_000, 2, "float64"), 'give "float32" or "int16"'),
        ((48_000, 2, "int16", -1), "leave it out"),
        ((48_000, 2, "int16", 48_001), "one second"),
        ((48_000, 2, "int16", 2.5), "integer"),
    ],
)
def test_format_refuses_and_says_what_to_do(arguments, advice):
    with pytest.raises(ConfigurationError, match=advice):
        AudioFormat(*arguments)


@pytest.mark.parametrize(
    ("samples", "advice"),
    [
        (np.zeros((4, 1), np.float32), r"give \(frames, 2\)"),
        (np.zeros(8, np.float32), "reshape"),
        (np.zeros((4, 2)), "float64"),
        (np.zeros((4, 2), np.int16), "convert"),
        (b"1234", "bytes"),
    ],
)
def test_frame_refuses_samples_of_another_format(samples, advice):
    with pytest.raises(ConfigurationError, match=advice):
        AudioFrame(samples, AudioFormat(48_000, 2))


@given(arrays(np.int16, st.tuples(st.integers(0, 40), st.integers(1, 6))))
def test_int16_bytes_and_back(samples):
    fmt = AudioFormat(16_000, samples.shape[1], "int16")
    frame = AudioFrame(samples, fmt, 5, 6, 7)
    data = frame.to_bytes()
    assert data == samples.astype("<i2").tobytes() == bytes(frame.to_buffer())
    back = AudioFrame.from_bytes(data, fmt, timestamp=5, capture_ts=6, sequence_number=7)
    np.testing.assert_array_equal(back.samples, samples)
    assert (back.timestamp, back.capture_ts, back.sequence_number) == (5, 6, 7)
    np.testing.assert_array_equal(back.as_int16(), samples)
    loud = AudioFrame(back.as_float32(), AudioFormat(16_000, samples.shape[1]))
    np.testing.assert_array_equal(loud.as_int16(), samples)


def test_from_bytes_is_a_view_when_aligned_and_a_copy_when_not():
    fmt = AudioFormat(48_000, 2)
    data = bytearray(16 * 8 + 1)
    whole = np.frombuffer(data, np.uint8)
    for start in (0, 1):
        frame = AudioFrame.from_bytes(memoryview(data)[start : start + 128], fmt)
        assert frame.samples.flags.aligned
        assert np.shares_memory(frame.samples, whole) == (start == 0)


def test_to_buffer_copies_only_what_is_not_contiguous():
    fmt = AudioFormat(48_000, 2)
    wide = np.arange(40, dtype=np.float32).reshape(10, 4)
    for samples, shared in (
        (wide.reshape(20, 2), True),
        (wide[:, :2], False),
        (wide.T[:2].T, False),
    ):
        frame = AudioFrame(samples, fmt)
        view = np.frombuffer(frame.to_buffer(), np.float32)
        assert np.shares_memory(view, wide) == shared
        np.testing.assert_array_equal(view.reshape(-1, 2), samples)
        assert frame.to_bytes() == bytes(frame.to_buffer())
        assert frame.as_int16().shape == samples.shape


def test_from_bytes_refuses_a_broken_length():
    with pytest.raises(ProtocolError, match="7 bytes"):
        AudioFrame.from_bytes(b"1234567", AudioFormat(48_000, 2))


def test_own_type_is_not_copied_and_duration_is_in_seconds():
    frame = AudioFrame(np.zeros((480, 2), np.float32), AudioFormat(48_000, 2))
    assert frame.as_float32() is frame.samples
    assert frame.duration == 0.01
    quiet = AudioFrame(np.zeros((480, 2), np.int16), AudioFormat(48_000, 2, "int16"))
    assert quiet.as_int16() is quiet.samples
