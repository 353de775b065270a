"""Messages in protobuf's encoding, of formats whose classes no library here has."""

from __future__ import annotations

from collections.abc import Iterator

_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def varint(value: int) -> bytes:
    """Return a non-negative number in the encoding of protobuf."""
    if value < 0x80:  # most numbers are as short, and a large timeline has millions
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def field(number: int, value: int | str | bytes) -> bytes:
    """Return a field of a message: a number, or a text or message with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and values of a message's fields that are messages or texts."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value, place, shift = value | (byte & 0x7F) << shift, place + 1, shift + 7
            if byte <= 0x7F:
                return value

    while place < len(message):
        key, kind = divmod(number(), 8)
        if kind == 2:
            size = number()
            yield key, message[place : place + size]
            place += size
        elif kind == 0:
            number()
        else:
            place += 8 if kind == 1 else 4
