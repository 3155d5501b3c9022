"""Payloads: Python values to msgpack and back. The only door to msgpack and msgspec.

msgspec does both directions, the untyped one too: it decodes into the annotated type without
intermediate objects, names the field in its errors, and beats the ``msgpack`` package or ties with
it (long lists of ints) for plain values: ``python bench/bench_payload.py``. ``msgpack`` is the
independent oracle of the tests: what one of them writes, the other reads.

Neither bounds nesting or items, so whatever holds containers or extension types is walked by
:func:`~echostream.protocol.frames.scan_payload` before an object is built. A scalar, a str or a
bin is not: msgspec checks its length itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, overload

import msgspec
import numpy as np

from echostream.errors import ConfigurationError, InvalidPayload
from echostream.protocol import models
from echostream.protocol.frames import MAX_METADATA, scan_payload

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "MAX_DEPTH",
    "MAX_ITEMS",
    "decode",
    "decode_metadata",
    "decoder",
    "encode",
    "encode_metadata",
    "json_schemas",
]

MAX_DEPTH = 32
"""How deep containers may nest, where nothing else was agreed."""
MAX_ITEMS = 65_536
"""How many items all containers of a payload may hold, where nothing else was agreed."""

T = TypeVar("T")

_ndarray = np.ndarray
_EXT_ARRAY = 1
_EXT_COMPLEX = 2
_COMPLEX = struct.Struct(">dd")
_DTYPES = {
    dtype.str.encode(): dtype
    for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
    for dtype in (np.dtype(code).newbyteorder("<"), np.dtype(code).newbyteorder(">"))
}
# First bytes of values that hold others or are extension types, 0xc1 among them.
_SCANNED = bytes(
    first in {*range(0x80, 0xA0), 0xC1, *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)}
    for first in range(256)
)


def encode(value: object, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> bytes:
    """The msgpack of a value.

    Takes ``None``, bool, int of 64 bits, float, str, bytes, bytearray, memoryview, list, tuple,
    set, dict with str keys, dataclass, ``msgspec.Struct``, enum, datetime, date, time, timedelta,
    UUID, Decimal, complex, numpy arrays of numbers and numpy scalars (as numbers), and models of
    pydantic where the program uses it. An aware
    datetime travels as a timestamp, a naive one and the types after it as str. Raises
    :class:`~echostream.errors.InvalidPayload` for anything else, and for what the receiver's
    limits would refuse.
    """
    try:
        if type(value) is _ndarray:
            return _encode_array(value)
        data = _encode(value)
        if _SCANNED[data[0]]:
            scan_payload(data, max_depth, max_items)
    except InvalidPayload:
        raise
    except RecursionError as exc:
        raise InvalidPayload(f"{_name(value)} cannot be sent: nested too deep") from exc
    except Exception as exc:
        raise InvalidPayload(f"{_name(value)} cannot be sent: {exc}") from exc
    return data


@overload
def decoder(
    annotation: type[T], *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS
) -> Callable[[Buffer], T]: ...


@overload
def decoder(
    annotation: Any, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS
) -> Callable[[Buffer], Any]: ...


def decoder(
    annotation: Any, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS
) -> Callable[[Buffer], Any]:
    """A function from msgpack to values of an annotated type; made once per annotation.

    Strict: nothing is converted, except int to float. Unknown fields of an object are ignored.
    The function raises :class:`~echostream.errors.InvalidPayload`, which names the path of the
    field (``$.age``), what was expected and what came; no object is built from input that passes
    ``max_depth`` or ``max_items``. numpy arrays are read-only, views of the input where it is
    aligned for them; ``memoryview`` fields are views too. ``numpy.typing.NDArray[X]`` enforces the
    dtype. Raises :class:`~echostream.errors.ConfigurationError` for an annotation that cannot be
    decoded.
    """
    try:
        hash(annotation)
    except TypeError:
        return _build(annotation, max_depth, max_items)
    return _cached(annotation, max_depth, max_items)


def encode_metadata(metadata: Mapping[str, str | bytes]) -> bytes:
    """The METADATA field of a frame. Raises :class:`~echostream.errors.InvalidPayload` for other
    types, and for more than 16 KiB of it."""
    data = encode(dict(metadata), max_depth=1)
    decode_metadata(data)
    if len(data) > MAX_METADATA:
        raise InvalidPayload(f"metadata of {len(data)} bytes, limit {MAX_METADATA}")
    return data


def decode_metadata(data: Buffer) -> dict[str, str | bytes]:
    """What :func:`encode_metadata` wrote, else :class:`~echostream.errors.InvalidPayload`."""
    found: dict[str, str | bytes] = _metadata(data)
    for key, value in found.items():  # msgspec has no union of str and bytes
        if type(value) is not str and type(value) is not bytes:
            raise InvalidPayload(
                f"metadata {key!r}: Expected `str` or `bytes`, got `{_name(value)}`"
            )
    return found


def json_schemas(annotations: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The JSON Schema (2020-12) of each annotation, and the components that they refer to as
    ``#/components/schemas/...``. What JSON Schema cannot say (arrays of numbers, complex numbers,
    an annotation that is not a payload's) has only a ``title``."""
    usable = []
    models_used: dict[str, Any] = {}

    def schema_of(cls: Any) -> dict[str, Any]:
        if not models.is_model(cls):
            return {"title": _name_of(get_origin(cls) or cls)}
        schema, others = models.model_schema(cls, "#/components/schemas/{model}")
        models_used.update(others)
        return schema

    for annotation in annotations:
        try:
            msgspec.json.schema_components((annotation,), schema_hook=schema_of)
            usable.append(annotation)
        except Exception:
            usable.append(_Titled(annotation))
    known = [each for each in usable if not isinstance(each, _Titled)]
    schemas, components = msgspec.json.schema_components(
        known, schema_hook=schema_of, ref_template="#/components/schemas/{name}"
    )
    rest = iter(schemas)
    out = [
        {"title": str(each.annotation)} if isinstance(each, _Titled) else next(rest)
        for each in usable
    ]
    return out, {**models_used, **components}


class _Titled:
    """An annotation without a schema."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation


def _build(annotation: Any, max_depth: int, max_items: int) -> Callable[[Buffer], Any]:
    try:
        _check(msgspec.inspect.type_info(annotation), set())
        run = msgspec.msgpack.Decoder(
            annotation, dec_hook=_decode_custom, ext_hook=_decode_ext
        ).decode
    except ConfigurationError as exc:
        raise ConfigurationError(f"{annotation!r} cannot be a payload's type: {exc}") from None
    except Exception as exc:
        raise ConfigurationError(f"{annotation!r} cannot be a payload's type: {exc}") from exc

    def decode(data: Buffer) -> Any:
        try:
            if _SCANNED[data[0]]:  # type: ignore[index]
                scan_payload(data, max_depth, max_items)
            return run(data)
        except Exception as exc:
            raise _refusal(data, exc) from exc

    return decode


_cached = lru_cache(maxsize=1024)(_build)


def _refusal(data: Any, exc: Exception) -> InvalidPayload:
    """What a decoding error becomes. Text of unforeseen exceptions stays here: it is local."""
    if isinstance(exc, InvalidPayload):
        return exc
    if len(data) == 0:
        return InvalidPayload("the payload is empty")
    if isinstance(exc, msgspec.ValidationError):
        text = str(exc)
        return InvalidPayload(
            text if text.endswith("`") and " - at `" in text else f"{text} - at `$`"
        )
    if isinstance(exc, UnicodeDecodeError):
        return InvalidPayload("a str is not UTF-8")
    if isinstance(exc, RecursionError):
        return InvalidPayload("nested too deep")
    if isinstance(exc, ValueError):  # of scan_payload, and msgspec.DecodeError
        return InvalidPayload(str(exc))
    return InvalidPayload(f"{type(exc).__name__} while the payload was decoded")


# -- annotations -----------------------------------------------------------------------------

_CUSTOM = (np.ndarray, complex)
_KEYS = (
    msgspec.inspect.AnyType,
    msgspec.inspect.StrType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.DecimalType,
)


def _check(node: Any, seen: set[int]) -> None:
    """Refuse what msgspec takes and the wire does not: classes that nothing here can build, and
    keys that are not str. ``seen`` ends the walk in recursive types."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, tuple):
        for part in node:
            _check(part, seen)
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        if isinstance(node, msgspec.inspect.CustomType) and not (
            node.cls in _CUSTOM or models.is_model(node.cls)
        ):
            raise ConfigurationError(
                f"{_name_of(node.cls)} is not a dataclass, msgspec.Struct, TypedDict, NamedTuple, "
                "enum or built-in type"
            )
        if isinstance(node, msgspec.inspect.DictType) and not _is_key(node.key_type):
            raise ConfigurationError("the keys of a dict are str on the wire")
        for field in node.__struct_fields__:
            _check(getattr(node, field), seen)


def _is_key(node: msgspec.inspect.Type) -> bool:
    if isinstance(node, msgspec.inspect.EnumType):
        return all(isinstance(member.value, str) for member in node.cls)
    if isinstance(node, msgspec.inspect.LiteralType):
        return all(isinstance(value, str) for value in node.values)
    if isinstance(node, msgspec.inspect.UnionType):
        return all(map(_is_key, node.types))
    if isinstance(node, msgspec.inspect.Metadata):
        return _is_key(node.type)
    return isinstance(node, _KEYS)


# -- values that msgspec does not know -------------------------------------------------------


def _encode_other(value: object) -> object:
    if isinstance(value, np.ndarray):
        return msgspec.msgpack.Ext(_EXT_ARRAY, b"".join(_array_body(value)))
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, complex | np.complexfloating):
        return msgspec.msgpack.Ext(_EXT_COMPLEX, _COMPLEX.pack(value.real, value.imag))
    if isinstance(value, str):
        return str(value)
    if models.is_model(type(value)):
        return models.dump(value)
    raise InvalidPayload(
        f"{_name(value)} cannot be sent: make it a dataclass, a msgspec.Struct, or built-in types "
        "such as dict, list, str, bytes and int"
    )


_encode = msgspec.msgpack.Encoder(enc_hook=_encode_other).encode


def _encode_array(array: np.ndarray[Any, Any]) -> bytes:
    """An array that is the whole payload, with one copy of its elements."""
    head, elements = _array_body(array)
    size = len(head) + elements.nbytes
    if size >= 1 << 32:
        raise InvalidPayload(f"an array of {elements.nbytes} bytes cannot be sent in one payload")
    return b"".join((struct.pack(">BIb", 0xC9, size, _EXT_ARRAY), head, elements))


def _array_body(array: np.ndarray[Any, Any]) -> tuple[bytes, memoryview]:
    """What stands before the elements, padded to a multiple of 8, and the elements."""
    code = array.dtype.str.encode()
    if code not in _DTYPES:
        raise InvalidPayload(f"an array of dtype {array.dtype} cannot be sent: only numbers can")
    if array.ndim > 8:
        raise InvalidPayload(f"an array of {array.ndim} dimensions cannot be sent: at most 8 can")
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidPayload("a masked array cannot be sent: fill it first")
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    head = bytes((len(code), *code, array.ndim)) + struct.pack(f">{array.ndim}Q", *array.shape)
    return head.ljust(-(-len(head) // 8) * 8, b"\0"), array.reshape(-1).view(np.uint8).data


def _decode_ext(code: int, body: memoryview) -> object:
    if code == _EXT_ARRAY:
        return _decode_array(body)
    if code == _EXT_COMPLEX and len(body) == _COMPLEX.size:
        return complex(*_COMPLEX.unpack(body))
    raise InvalidPayload(f"extension type {code} of {len(body)} bytes is not known")


def _decode_array(body: memoryview) -> np.ndarray[Any, Any]:
    """Nothing is trusted: the dtype is looked up in a table, the shape must fit the bytes."""
    dtype = _DTYPES.get(bytes(body[1 : 1 + body[0]])) if len(body) > 8 else None
    if dtype is None:
        raise InvalidPayload("an array's dtype is not one of numbers")
    at = 2 + body[0]
    ndim = body[at - 1]
    start = -(-(at + 8 * ndim) // 8) * 8
    if ndim > 8 or start > len(body) or any(body[at + 8 * ndim : start]):
        raise InvalidPayload("an array's header is malformed")
    shape = struct.unpack_from(f">{ndim}Q", body, at)
    count = math.prod(shape)
    if count * dtype.itemsize != len(body) - start:
        raise InvalidPayload(f"an array of shape {shape} and {dtype} has {len(body) - start} bytes")
    if not count:
        return np.zeros(shape, dtype)
    array = np.frombuffer(body, dtype, count, start).reshape(shape)
    if dtype.kind == "b" and array.view(np.uint8).max() > 1:
        raise InvalidPayload("an array of bool holds other bytes than 0 and 1")
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def _decode_custom(annotation: Any, value: object) -> object:
    """msgspec asks this for annotations that it does not know, after the value was decoded."""
    if models.is_model(annotation):
        return models.validate(annotation, value)
    if not isinstance(value, get_origin(annotation) or annotation):
        expected = _name_of(get_origin(annotation) or annotation)
        raise ValueError(f"Expected `{expected}`, got `{_name_of(type(value))}`")
    if isinstance(value, np.ndarray) and get_args(annotation):
        (scalar,) = get_args(get_args(annotation)[1]) or (Any,)
        scalar = get_origin(scalar) or scalar
        if (
            scalar is not Any
            and isinstance(scalar, type)
            and not issubclass(value.dtype.type, scalar)
        ):
            raise ValueError(f"Expected array of `{_name_of(scalar)}`, got `{value.dtype}`")
    return value


def _name(value: object) -> str:
    return _name_of(type(value))


def _name_of(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


decode: Callable[[Buffer], Any] = decoder(Any)
"""Msgpack to plain values: ``None``, bool, int, float, str, bytes, list, dict, and aware datetime,
complex and numpy arrays. Raises :class:`~echostream.errors.InvalidPayload`."""

_metadata = decoder(dict[str, Any], max_depth=1)
