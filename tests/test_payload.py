"""Payloads: typed and untyped, hostile ones, and the walk before objects are built.

``msgpack`` is the independent oracle: what one writes, the other must read.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import random
import tracemalloc
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from echostream.errors import ConfigurationError, InvalidPayload
from echostream.protocol import payload_scan as twin
from echostream.protocol.payload import decode, decode_metadata, decoder, encode, encode_metadata


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str
    year: int


@dataclasses.dataclass
class User:
    name: str
    age: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)


class Node(msgspec.Struct):
    value: int
    next: Node | None = None


class Block(msgspec.Struct):
    samples: np.ndarray
    gain: float = 1.0


class Opaque:
    pass


NOW = dt.datetime(2026, 5, 17, 12, 30, 1, 250_000, tzinfo=dt.UTC)
UID = uuid.UUID("12345678-1234-5678-1234-567812345678")

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=40), inner, max_size=5
        )
    ),
    max_leaves=30,
)


@pytest.fixture(params=["_ext", "protocol"], ids=["compiled", "twin"])
def scan(request: pytest.FixtureRequest) -> Callable[..., int]:
    module: ModuleType = pytest.importorskip(f"echostream.{request.param}.payload_scan")
    function: Callable[..., int] = module.scan_payload
    return function


def count(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(count, value.values()))
    return len(value) + sum(map(count, value)) if isinstance(value, list) else 0


# -- values ----------------------------------------------------------------------------------


@given(plain)
@settings(max_examples=200, deadline=None)
def test_plain_values_are_those_of_msgpack(value: Any) -> None:
    wire = encode(value)
    assert decode(wire) == value
    assert msgpack.unpackb(wire) == value
    assert decode(msgpack.packb(value)) == value
    assert decode(memoryview(b"x" + wire)[1:]) == value
    assert decode(bytearray(wire)) == value


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, -5),
        (str, "größe"),
        (bytes, b"\x00\xff"),
        (bool, True),
        (float, 1.5),
        (type(None), None),
        (Any, {"a": [1, None]}),
        (list[int], [1, 2]),
        (dict[str, float], {"a": 1.5}),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (set[str], {"a", "b"}),
        (frozenset[int], frozenset((1, 2))),
        (int | None, None),
        (int | str, "x"),
        (User, User("alice", 30, ["a"])),
        (list[User], [User("alice"), User("bob", 1)]),
        (Node, Node(1, Node(2))),
        (Movie, {"title": "Alien", "year": 1979}),
        (Point, Point(1, 2)),
        (Colour, Colour.BLUE),
        (Level, Level.HIGH),
        (dict[Colour, int], {Colour.RED: 1}),
        (dict[Literal["a", "b"], int], {"a": 1}),
        (dict[uuid.UUID, int], {UID: 1}),
        (dt.datetime, NOW),
        (dt.datetime, dt.datetime(2026, 5, 17, 12, 30)),
        (dt.date, dt.date(2026, 5, 17)),
        (dt.time, dt.time(12, 30)),
        (dt.timedelta, dt.timedelta(seconds=90)),
        (uuid.UUID, UID),
        (decimal.Decimal, decimal.Decimal("1.10")),
        (complex, 1 - 2j),
        (Annotated[int, msgspec.Meta(ge=0)], 3),
        (Annotated[int, msgspec.Meta(extra={"un": "hashable"})], 3),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_typed_values(annotation: Any, value: Any) -> None:
    found = decoder(annotation)(encode(value))
    assert found == value
    assert type(found) is type(value)


def test_an_int_is_a_float_and_nothing_else_is_converted() -> None:
    assert decoder(float)(encode(2)) == 2.0
    for annotation, value in (
        (int, 2.0), (int, "2"), (int, True), (str, b"a"), (bytes, "a"), (bool, 1), (list[int], {}),
        (float, "1"), (str, None),
    ):  # fmt: skip
        with pytest.raises(InvalidPayload, match=r"Expected `\w+`, got `\w+` - at `\$`"):
            decoder(annotation)(encode(value))


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (User, {"name": "a", "age": "x"}, "Expected `int`, got `str` - at `$.age`"),
        (User, {"age": 1}, "Object missing required field `name` - at `$`"),
        (list[User], [{"name": "a", "tags": [1]}], "Expected `str`, got `int` - at `$[0].tags[0]`"),
        (Movie, {"title": "a"}, "Object missing required field `year` - at `$`"),
        (Point, [1, "b"], "Expected `int`, got `str` - at `$[1]`"),
        (Colour, "green", "Invalid enum value 'green' - at `$`"),
        (Node, {"value": 1, "next": {"value": None}}, "Expected `int`, got `None` - at `$.next.va"),
        (np.ndarray, 3, "Expected `numpy.ndarray`, got `int` - at `$`"),
        (Block, {"samples": b"x"}, "Expected `numpy.ndarray`, got `bytes` - at `$.samples`"),
        (complex, 3, "Expected `complex`, got `int` - at `$`"),
        (int, np.zeros(2), "Expected `int`, got `ext` - at `$`"),
    ],
)
def test_a_wrong_type_names_the_field(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        decoder(annotation)(encode(value))
    assert caught.value.message.startswith(text)


def test_metadata() -> None:
    metadata = {"trace": b"\x00\xff", "user": "größe"}
    wire = encode_metadata(metadata)
    assert decode_metadata(wire) == metadata
    assert msgpack.unpackb(wire) == metadata
    assert decode_metadata(encode_metadata({})) == {}
    for bad in ({"a": 1}, {"a": None}, {"a": {}}, {1: "a"}, {"a": "x" * 16_384}):
        with pytest.raises(InvalidPayload):
            encode_metadata(bad)
    for value in ({"a": 1}, {"a": [1]}, ["a"], None):
        with pytest.raises(InvalidPayload):
            decode_metadata(msgpack.packb(value))
    with pytest.raises(InvalidPayload, match="empty"):
        decode_metadata(b"")


def test_decoders_are_made_once() -> None:
    assert decoder(list[User]) is decoder(list[User])
    assert decoder(list[User]) is not decoder(list[User], max_items=10)


@pytest.mark.parametrize(
    "annotation",
    [
        Opaque, list[Opaque], dict[str, Opaque | None], object, np.float32, 5, "User", range,
        dict[int, str], list[dict[bytes, int]], dict[Level, int], dict[str | int, int],
        list[int] | set[int], Callable[[], int],
    ],
    ids=str,
)  # fmt: skip
def test_annotations_that_cannot_be_decoded(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a payload's type"):
        decoder(annotation)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Opaque(), "test_payload.Opaque cannot be sent: make it a dataclass"),
        ([Opaque()], "test_payload.Opaque cannot be sent"),
        (range(3), "range cannot be sent"),
        (1 << 64, "int cannot be sent"),
        ({1: 2}, "dict cannot be sent: map key that is not str at byte 1"),
        ({"a": {None: 2}}, "dict cannot be sent: map key that is not str"),
        ("\ud800", "str cannot be sent"),
        (memoryview(b"abcd")[::2], "memoryview cannot be sent"),
        ([0] * 65_537, "list cannot be sent: more than 65536 items"),
        (np.array(["a"]), "an array of dtype <U1 cannot be sent"),
        (np.array([None]), "an array of dtype object cannot be sent"),
        (np.array([NOW.replace(tzinfo=None)], "M8[us]"), "an array of dtype datetime64"),
        (np.zeros((1,) * 9), "an array of 9 dimensions"),
        (np.ma.masked_array([1, 2], [True, False]), "a masked array"),
        (np.zeros(2, np.longdouble), "an array of dtype"),
        (msgspec.msgpack.Ext(5, b""), "msgspec.msgpack.Ext cannot be sent: extension type 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_values_that_cannot_be_sent(value: object, text: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        encode(value)
    assert caught.value.message.startswith(text)


def test_nesting_that_cannot_be_sent() -> None:
    deep: list[Any] = []
    for _ in range(31):
        deep = [deep]
    assert decode(encode(deep)) == deep
    endless: list[Any] = []
    endless.append(endless)
    for value in ([deep], endless):
        with pytest.raises(InvalidPayload, match="list cannot be sent: nested"):
            encode(value)
    assert decoder(Any, max_depth=40)(encode([deep], max_depth=40)) == [deep]


# -- numpy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "<i2", ">i4", "i8", "u1", "u2", "u4", "u8", "f2", "<f4", ">f8", "c8", "c16"],
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 2), (2, 0, 3), (1,) * 8])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(7).integers(0, 2, shape).astype(dtype)
    for value, take in (
        (array, lambda found: found),
        ({"k": [array]}, lambda found: found["k"][0]),
    ):
        wire = encode(value)
        for place in range(8):
            found = take(decode(memoryview(bytes(place) + wire)[place:]))
            assert found.dtype == array.dtype
            assert found.shape == shape
            assert np.array_equal(found, array)
            assert found.flags.aligned
            assert found.flags.c_contiguous
            assert not found.flags.writeable or not found.size


def test_an_aligned_array_is_a_view_of_the_input() -> None:
    array = np.arange(100, dtype=np.float32)
    wire = encode(array)
    shared = [
        np.shares_memory(decode(view), view)
        for place in range(8)
        for view in [np.frombuffer(bytes(place) + wire, np.uint8)[place:].data]
    ]
    assert shared.count(True) == 2  # every fourth place


def test_arrays_in_memory_of_any_order() -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 6)
    for view in (array[:, ::2], array.T, np.asfortranarray(array), array[::-1]):
        assert np.array_equal(decode(encode(view)), view)
        assert np.array_equal(decode(encode([view]))[0], view)


def test_arrays_of_a_declared_dtype() -> None:
    assert decoder(NDArray[np.float32])(encode(np.zeros(2, "f4"))).dtype == np.float32
    assert decoder(NDArray[np.floating[Any]])(encode(np.zeros(2, "f4"))).dtype == np.float32
    assert decoder(NDArray[Any])(encode(np.zeros(2, "i4"))).dtype == np.int32
    with pytest.raises(InvalidPayload, match=r"Expected array of `numpy.float32`, got `float64`"):
        decoder(NDArray[np.float32])(encode(np.zeros(2)))
    block = decoder(Block)(encode(Block(np.ones(3))))
    assert block.samples.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(1.5), 1.5), (np.float32(0.5), 0.5), (np.float16(2), 2.0), (np.int8(-1), -1),
        (np.uint64((1 << 64) - 1), (1 << 64) - 1), (np.bool_(True), True), (np.str_("a"), "a"),
        (np.complex64(1j), 1j), (np.longdouble(1.5), 1.5),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_numpy_scalars_travel_as_numbers(value: Any, plain: Any) -> None:
    found = decode(encode([value]))[0]
    assert found == plain
    assert type(found) is type(plain)


def array_body(dtype: bytes, shape: tuple[int, ...], rest: bytes, pad: int | None = None) -> bytes:
    head = bytes((len(dtype), *dtype, len(shape)))
    head += b"".join((size & (1 << 64) - 1).to_bytes(8, "big") for size in shape)
    padding = -len(head) % 8 if pad is None else pad
    body = head + bytes(padding) + rest
    return b"\xc9" + len(body).to_bytes(4, "big") + b"\x01" + body


@pytest.mark.parametrize(
    "wire",
    [
        b"\xd4\x01\x00",
        b"\xd8\x01" + bytes(16),
        array_body(b"|O", (1,), bytes(8)),
        array_body(b"<V8", (1,), bytes(8)),
        array_body(b"<f16", (1,), bytes(16)),
        array_body(b"<U2", (1,), bytes(8)),
        array_body(b"<M8[us]", (1,), bytes(8)),
        array_body(b"i4,i4", (1,), bytes(8)),
        array_body(b"<i2", (3,), bytes(8)),
        array_body(b"<i2", (4,), bytes(7)),
        array_body(b"<i2", (1 << 63, 2), b""),
        array_body(b"<i2", (1 << 62, 1 << 62), b""),
        array_body(b"<i2", (0, (1 << 64) - 1), b""),
        array_body(b"<i2", (1,) * 9, bytes(2)),
        array_body(b"<i2", (4,), bytes(8), pad=0),
        array_body(b"|b1", (2,), b"\x00\x02"),
        b"\xc7\x08\x01" + array_body(b"<i2", (4,), b"")[6:14],
        b"\xd8\x01\xff" + bytes(15),
        b"\xd8\x01\x0d" + b"a" * 15,
        b"\xd7\x02" + bytes(8),
    ],
)
def test_hostile_extensions(wire: bytes) -> None:
    for data in (wire, b"\x91" + wire):
        with pytest.raises(InvalidPayload):
            decode(data)


# -- hostile ---------------------------------------------------------------------------------


HOSTILE = {
    "empty": b"",
    "a million arrays in each other": b"\x91" * 1_000_000,
    "a million empty arrays": b"\x90" * 1_000_000,
    "nested array headers": (b"\xdd" + (60_000).to_bytes(4, "big")) * 13_000,
    "nested map headers": (b"\xdf" + (60_000).to_bytes(4, "big") + b"\xa0") * 13_000,
    "a lying array": b"\xdd\xff\xff\xff\xff",
    "a lying map": b"\xdf\xff\xff\xff\xff",
    "a lying str": b"\xdb\xff\xff\xff\xffx",
    "a lying bin": b"\xc6\xff\xff\xff\xffx",
    "a lying extension": b"\xc9\xff\xff\xff\xff\x01x",
    "int keys": b"\x81\x01\x02",
    "trailing bytes": b"\xc0\xc0",
    "not UTF-8": b"\xa1\xff",
    "not UTF-8 in a map": b"\x81\xa1\xff\xc0",
    "the unused byte": b"\xc1",
    "an unknown extension": b"\xd4\x05\x00",
    "a timestamp that is none": b"\xc7\x0c\xff" + b"\xff" * 12,
    "a far timestamp": b"\xc7\x0c\xff" + bytes(4) + b"\x7f" + b"\xff" * 7,
    "a timestamp of 3 bytes": b"\xc7\x03\xff\x00\x00\x00",
    "a million items": b"\xdd\x00\x0f\x42\x40" + b"\xc0" * 1_000_000,
}


@pytest.mark.parametrize("wire", HOSTILE.values(), ids=HOSTILE)
def test_hostile_payloads_cost_little(wire: bytes) -> None:
    for annotation in (Any, int, User, list[Any], dict[str, Any], dt.datetime, Node):
        read = decoder(annotation)
        tracemalloc.start()
        try:
            with pytest.raises(InvalidPayload):
                read(wire)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100_000


@given(st.binary(max_size=60), st.data())
@settings(max_examples=400, deadline=None)
def test_nothing_else_is_raised(wire: bytes, data: st.DataObject) -> None:
    annotations = [Any, int, User, Node, Movie, Point, dt.datetime, Block, list[Any], Colour]
    read = decoder(data.draw(st.sampled_from(annotations)))
    with suppress(InvalidPayload):
        read(wire)


def test_errors_of_user_code_do_not_tell_their_text() -> None:
    @dataclasses.dataclass
    class Local:
        value: int

        def __post_init__(self) -> None:
            raise KeyError("a secret")

    with pytest.raises(InvalidPayload) as caught:
        decoder(Local)(encode({"value": 1}))
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


# -- the walk --------------------------------------------------------------------------------


@given(plain)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("which", ["_ext", "protocol"])
def test_the_walk_counts_items(which: str, value: Any) -> None:
    module = pytest.importorskip(f"echostream.{which}.payload_scan")
    wire = msgpack.packb(value)
    items = count(value)
    assert module.scan_payload(wire) == items
    assert module.scan_payload(memoryview(wire), 32, items) == items
    if items:
        with pytest.raises(ValueError, match=f"more than {items - 1} items at byte"):
            module.scan_payload(wire, 32, items - 1)


def test_depth(scan: Callable[..., int]) -> None:
    assert scan(b"\x91" * 31 + b"\x90") == 31
    assert scan(b"\x91" * 254 + b"\x90", 255) == 254
    assert scan(b"\xc0", 0) == 0
    for depth, wire, at in (
        (32, b"\x91" * 32 + b"\x90", 32),
        (0, b"\x80", 0),
        (1, b"\x81\xa0\x90", 2),
    ):
        with pytest.raises(ValueError, match=f"nested deeper than {depth} at byte {at}"):
            scan(wire, depth)
    for depth in (-1, 256):
        with pytest.raises(ValueError, match="max_depth is 0 to 255"):
            scan(b"\xc0", depth)


def test_extension_types_are_those_asked_for(scan: Callable[..., int]) -> None:
    for code in (-128, -2, 0, 3, 127):
        wire = b"\xd4" + code.to_bytes(1, "big", signed=True) + b"x"
        with pytest.raises(ValueError, match=f"extension type {code} at byte 0"):
            scan(wire)
        assert scan(wire, exts=(code,)) == 0


@given(
    st.binary(max_size=60) | plain.map(msgpack.packb),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3),
    st.integers(0, 6),
    st.integers(0, 20) | st.just(65_536),
)
@settings(max_examples=600, deadline=None)
def test_both_walk_alike(
    source: bytes, changes: list[tuple[int, int]], depth: int, items: int
) -> None:
    compiled = pytest.importorskip("echostream._ext.payload_scan")
    data = bytearray(source)
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    found = []
    for function in (compiled.scan_payload, twin.scan_payload):
        try:
            found.append(function(bytes(data), depth, items))
        except ValueError as exc:
            found.append(str(exc))
    assert found[0] == found[1]


def test_what_the_walk_accepts_can_be_decoded(scan: Callable[..., int]) -> None:
    """The other way round of the hostile corpus: no lie about structure gets through."""
    rng = random.Random(11)
    accepted = 0
    for _ in range(3000):
        wire = bytearray(rng.randbytes(rng.randrange(1, 12)))
        wire[0] = rng.choice((0x81, 0x82, 0x91, 0x92, 0x93, 0xDC, 0xC0))
        try:
            scan(bytes(wire), exts=())
        except ValueError:
            continue
        accepted += 1
        msgpack.unpackb(bytes(wire), raw=True, strict_map_key=False)
    assert accepted > 50
