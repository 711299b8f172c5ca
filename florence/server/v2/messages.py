"""Reads gRPC messages. Bytes that are not a message of their type are refused; so is more structure than any
request has, before protobuf makes objects of it: an empty submessage's takes a hundred times its bytes.

Pure functions on bytes, by protobuf's wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError

from florence.errors import ProtocolError, TooMuchStructure

MOST_FIELDS: Final = 4096
MOST_BYTES: Final = 2**19
"""Bytes outside of tensors' elements: the longest id, and as much for names, shapes and parameters."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_Fields = Mapping[int, Any]
_ELEMENT: Final[_Fields] = MappingProxyType({})  # bytes that are not counted
_INFER_REQUEST: Final[_Fields] = MappingProxyType(
    # inputs {contents {bytes_contents}}, raw_input_contents
    {5: MappingProxyType({5: MappingProxyType({8: _ELEMENT})}), 7: _ELEMENT}
)


def parse_message(kind: Any, data: bytes) -> Any:
    """The message in `data`; `kind`: its class in protobuf. Raises ProtocolError, TooMuchStructure."""
    name = kind.DESCRIPTOR.name
    _Count(name).walk(memoryview(data), _INFER_REQUEST if name == "ModelInferRequest" else _ELEMENT)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ProtocolError(f"the message is not a valid protobuf {name}") from None


class _Count:
    """Counts the fields of a message, and their bytes that are not tensors' elements."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fields = self._bytes = 0

    def walk(self, data: memoryview, inside: _Fields) -> None:
        """Go over a message's fields, and into those of `inside`. Stops where the message is malformed, which
        protobuf will report. Raises TooMuchStructure."""
        position = 0
        while position < len(data):
            tag, position = _varint(data, position)
            self._add(1)
            kind = tag & 7
            size = 0
            if kind == _VARINT:
                _, position = _varint(data, position)
            elif kind == _LENGTH:
                size, position = _varint(data, position)
                known = inside.get(tag >> 3)
                if known:
                    self.walk(data[position : position + size], known)
                elif known is None:
                    self._add(0, size)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            position += size

    def _add(self, fields: int, size: int = 0) -> None:
        self._fields += fields
        self._bytes += size
        if self._fields > MOST_FIELDS:
            raise TooMuchStructure(self._name, f"it has more than {MOST_FIELDS} fields")
        if self._bytes > MOST_BYTES:
            raise TooMuchStructure(
                self._name, f"it has more than {MOST_BYTES} bytes outside of tensors' elements"
            )


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it; 0 and the end of the data for a malformed one."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return 0, len(data)
