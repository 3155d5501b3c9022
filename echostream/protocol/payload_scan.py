"""A look at msgpack before objects are built from it: twin of ``ext/payload_scan.pyx``.

The oracle of its tests, and what runs where nothing is compiled. Both have one API and the same
texts of errors; :mod:`echostream.protocol.frames` hands out the one that is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["scan_payload"]

_PLAIN, _STR, _EXT, _UNUSED, _ARRAY, _MAP = range(6)


def _layout() -> list[tuple[int, int, int]]:
    """For each first byte of a msgpack value: kind, bytes of the count that follows, and the count
    where none follows. The count is of bytes, of elements or of entries."""
    table = [(_PLAIN, 0, 0)] * 256
    for low in range(16):
        table[0x80 + low] = (_MAP, 0, low)
        table[0x90 + low] = (_ARRAY, 0, low)
    for low in range(32):
        table[0xA0 + low] = (_STR, 0, low)
    table[0xC1] = (_UNUSED, 0, 0)
    for power in range(3):
        table[0xC4 + power] = (_PLAIN, 1 << power, 0)  # bin
        table[0xC7 + power] = (_EXT, 1 << power, 0)
        table[0xD9 + power] = (_STR, 1 << power, 0)
    for power in range(4):
        table[0xCC + power] = table[0xD0 + power] = (_PLAIN, 0, 1 << power)  # uint, int
    for power in range(5):
        table[0xD4 + power] = (_EXT, 0, 1 << power)
    table[0xCA], table[0xCB] = (_PLAIN, 0, 4), (_PLAIN, 0, 8)  # float
    table[0xDC], table[0xDD] = (_ARRAY, 2, 0), (_ARRAY, 4, 0)
    table[0xDE], table[0xDF] = (_MAP, 2, 0), (_MAP, 4, 0)
    return table


_LAYOUT = _layout()


def scan_payload(
    data: Buffer,
    max_depth: int = 32,
    max_items: int = 65_536,
    exts: tuple[int, ...] = (-1, 1, 2),
) -> int:
    """Walk a msgpack value without building objects, and return how many items it has.

    An element of an array is an item, and so is an entry of a map. Raises ``ValueError``, which
    names limit and byte, for: containers nested deeper than ``max_depth`` (at most 255), more than
    ``max_items`` items in all containers together, a map key that is not str, an extension type
    not in ``exts``, a length that the input does not hold, the unused byte 0xc1, bytes after the
    value. Not checked: that a str is UTF-8 and that an extension's body makes sense. Linear time,
    constant memory.
    """
    if not 0 <= max_depth <= 255 or max_items < 0:
        raise ValueError("max_depth is 0 to 255, and max_items is not negative")
    if not isinstance(data, bytes):
        data = memoryview(data).cast("B")
    size = len(data)
    at = items = 0
    left, keyed = 1, False  # values still to come in the innermost container; whether it is a map
    outer: list[tuple[int, bool]] = []
    while True:
        if left == 0:
            if not outer:
                break
            left, keyed = outer.pop()
            continue
        if at == size:
            raise ValueError(f"the input ends where a value should begin, at byte {at}")
        begin = at
        kind, width, count = _LAYOUT[data[begin]]
        if keyed and not left & 1 and kind != _STR:
            raise ValueError(f"map key that is not str at byte {begin}")
        left -= 1
        at += 1
        if width:
            count = int.from_bytes(data[at : at + width], "big")
            at += width
        if at > size:
            raise ValueError(f"the input ends inside the value at byte {begin}")
        if kind >= _ARRAY:
            if len(outer) == max_depth:
                raise ValueError(f"nested deeper than {max_depth} at byte {begin}")
            items += count
            if items > max_items:
                raise ValueError(f"more than {max_items} items at byte {begin}")
            keyed_, count = (False, count) if kind == _ARRAY else (True, 2 * count)
            if count > size - at:
                raise ValueError(f"the input is too short for the container at byte {begin}")
            outer.append((left, keyed))
            left, keyed = count, keyed_
            continue
        if kind == _EXT:
            code = int.from_bytes(data[at : at + 1], "big", signed=True)
            if at < size and code not in exts:
                raise ValueError(f"extension type {code} at byte {begin}")
            at += 1
        elif kind == _UNUSED:
            raise ValueError(f"byte 0xc1 at byte {begin}")
        at += count
        if at > size:
            raise ValueError(f"the input ends inside the value at byte {begin}")
    if at < size:
        raise ValueError(f"{size - at} bytes follow the value, at byte {at}")
    return items
