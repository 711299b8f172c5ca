"""Parses JSON without copying its long strings, and refuses more structure than any request has.

Most of a body is pictures in base64. Parsing and copying them would take most of a request's time, twice
their memory, and the interpreter's lock. So strings are found by their quotes alone: long ones are left in
the body, bytes outside of strings are counted, and only a small rest is ever given to the parser. Pure
functions on bytes; a body may be bytes or a bytearray.

Faster parsers do not replace it: on a body of 240 KiB and of 1.8 MiB, this takes 0.011 and 0.027 ms, orjson
3.13 0.045 and 0.39 ms, msgspec 0.22 0.042 and 0.33 ms, json 0.09 and 0.71 ms (best of 300, one AMD EPYC
core). They also refuse a byte order mark, and orjson rounds long integers.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

from florence.errors import MalformedJson, ProtocolError, TooMuchStructure
from florence.types.options import MAX_TEXT_CHARS

LONG: Final = 16_384
"""A string of more bytes is left in the body. Few texts that a task takes are this long."""
MAX_STRUCTURE: Final = 65_536
"""Bytes outside of strings: a request of 36 rows, written with a line for each value, has a tenth."""
MAX_STRINGS: Final = 4096
MAX_NESTED: Final = 64
"""Levels of objects and lists; a request has five. Functions that visit a value call themselves for each."""
MAX_QUOTED: Final = 12 * MAX_TEXT_CHARS
"""Bytes of a text in JSON, each character written as two escapes."""
MAX_PARSED: Final = 2 * 2**20
"""Bytes that are given to the parser: 36 rows whose strings all stay just below `LONG` have 1.7 MiB."""

_AT_ONCE: Final = 4 * 2**20  # bytes that are searched for quotes in a fraction of a millisecond
_FEW_STRINGS: Final = 32  # all of them short: 0.5 MiB for the parser
_QUOTE: Final = b'"'
_BACKSLASH: Final = ord("\\")
_WHITE: Final = b" \t\r\n"
_PIECE: Final = 2**18
_ESCAPE: Final = 6  # bytes of the longest escape
_ESCAPES: Final = re.compile(rb"(?:[^\\]|\\u[0-9a-fA-F]{4}|\\[^u])*", re.DOTALL)
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_STAND_IN: Final = b"-Infinity"  # not JSON, but Python's parser asks `parse_constant` for its value


def parse_json(text: bytes | str, constant: Callable[[str], Any] | None = None) -> Any:
    """A short text's JSON value. A byte order mark is allowed. Raises ProtocolError, which says where it is
    malformed.

    `constant`: returns the value of NaN, Infinity and -Infinity, which are not JSON; None: they are errors.
    """
    try:
        return json.loads(text, parse_constant=constant or _refuse_constant)
    except json.JSONDecodeError as error:
        raise MalformedJson(error.msg, error.pos) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise MalformedJson(str(error)[:200]) from None


def parsing_cost(body: bytes | bytearray) -> int:
    """For `replies.off_loop`: bytes of a plain JSON document whose parsing takes as long. A picture in base64
    costs nothing, since it is left where it is."""
    if len(body) > _AT_ONCE or not json.detect_encoding(bytes(body[:4])).startswith("utf-8"):
        return len(body)
    quote = -1
    for _ in range(2 * _FEW_STRINGS):
        quote = body.find(_QUOTE, quote + 1)
        if quote < 0:
            return min(len(body), LONG)
    return len(body)


class LongString:
    """A JSON string that is left in its body. `quoted`: its bytes there, quotes included, escapes not
    decoded."""

    __slots__ = ("quoted",)

    def __init__(self, quoted: memoryview) -> None:
        self.quoted = quoted

    def __len__(self) -> int:
        return len(self.quoted) - 2

    @property
    def text(self) -> memoryview:
        """The bytes between the quotes."""
        return self.quoted[1:-1]

    def __str__(self) -> str:
        """The decoded string. Raises ProtocolError if it is not UTF-8 or holds a control character."""
        return str(parse_json(bytes(self.quoted)))

    def pieces(self) -> Iterator[str]:
        """The decoded string in pieces, none of which holds the interpreter's lock for long. The halves of a
        surrogate pair that is written in escapes may be in two pieces. Raises as `str`."""
        decoder, position, text = codecs.getincrementaldecoder("utf-8")(), 0, self.text
        while position < len(text):
            piece = bytes(text[position : position + _PIECE])
            if position + len(piece) < len(text):
                piece = piece[: _end_of_escapes(piece)]
            position += len(piece)
            try:
                part = decoder.decode(piece, final=position == len(text))
            except UnicodeDecodeError as error:
                raise MalformedJson(str(error)[:200]) from None
            yield str(parse_json(f'"{part}"'))


def _end_of_escapes(piece: bytes) -> int:
    """How many bytes to keep of a JSON string's piece, so that it does not end within an escape."""
    for stop in range(len(piece), len(piece) - 256, -_ESCAPE):
        if _BACKSLASH not in piece[max(0, stop - _ESCAPE) : stop]:
            return stop
    whole = _ESCAPES.match(piece)  # escapes everywhere: from the piece's start
    return whole.end() if whole and whole.end() else len(piece)


def short_strings(value: Any) -> Any:
    """The value with a `str` in place of each LongString. Raises ProtocolError for one that is longer than
    any text may be."""
    if isinstance(value, LongString):
        if len(value) > MAX_QUOTED:
            raise ProtocolError(
                f"a text has {len(value)} bytes; at most {MAX_TEXT_CHARS} characters are allowed"
            )
        return str(value)
    if isinstance(value, list):
        return [short_strings(element) for element in value]
    if isinstance(value, dict):
        return {name: short_strings(element) for name, element in value.items()}
    return value


class _Span(NamedTuple):
    """Where a string begins and ends, with its quotes."""

    start: int
    stop: int


class Document:
    """A body's JSON, not parsed yet: its first `length` bytes, or all. `size`: bytes that the parser will
    get.

    Raises ProtocolError for a string without an end, TooMuchStructure for more than any request has.
    """

    def __init__(self, body: bytes | bytearray, length: int | None = None) -> None:
        self._body, self._length = body, len(body) if length is None else length
        self._spans = [] if 0 in body[:2] else list(self._long_values())  # UTF-16 and UTF-32 have zeros
        self.size = self._length - sum(stop - start for start, stop in self._spans)
        if self.size > MAX_PARSED:
            raise _too_much(f"{self.size} bytes of it are no long strings; up to {MAX_PARSED} may be")

    def parse(self) -> Any:
        """The JSON's value, with a LongString in place of each long string that is an element or a member's
        value.

        Raises ProtocolError saying where it is malformed, TooMuchStructure where it is nested too deeply. A
        byte order mark is allowed.
        """
        strings = iter([LongString(memoryview(self._body)[start:stop]) for start, stop in self._spans])

        def string_or_refuse(word: str) -> LongString:
            string = next(strings, None) if word == "-Infinity" else None
            return _refuse_constant(word) if string is None else string

        short = _STAND_IN.join(self._around())
        try:
            value = parse_json(short, string_or_refuse)
        except MalformedJson as error:
            if error.position is None:
                raise
            raise MalformedJson(error.reason, self._place(short, error.position)) from None
        _check_nesting(value)
        return value

    def _long_values(self) -> Iterator[_Span]:
        """The long strings that are values, not keys. Goes from quote to quote; counts strings, and bytes
        outside."""
        body, end = self._body, self._length
        outside = position = strings = 0
        while (start := body.find(_QUOTE, position, end)) >= 0:
            strings += 1
            outside += start - position
            _check(strings, outside)
            stop = _end_of_string(body, start + 1, end)
            if stop < 0:
                raise MalformedJson("Unterminated string starting at", start)
            if stop - start > LONG and body[position:start].rstrip(_WHITE)[-1:] in (b"[", b",", b":"):
                after = body[stop + 1 : min(end, stop + MAX_STRUCTURE)].lstrip(_WHITE)
                if not after.startswith(b":"):
                    yield _Span(start, stop + 1)
            position = stop + 1
        _check(strings, outside + end - position)

    def _around(self) -> list[bytes]:
        """The parts before, between and after the long strings."""
        starts = [0, *(stop for _, stop in self._spans)]
        stops = [*(start for start, _ in self._spans), self._length]
        return [bytes(self._body[start:stop]) for start, stop in zip(starts, stops, strict=True)]

    def _place(self, short: bytes, position: int) -> int:
        """The offset in the whole body of a character position in the parsed text."""
        if not self._spans:
            return position
        place = len(short.decode("utf-8", "replace")[:position].encode())
        for start, stop in self._spans:
            if place <= start:
                break
            place += stop - start - len(_STAND_IN)
        return place


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON")


def _too_much(reason: str) -> TooMuchStructure:
    return TooMuchStructure("JSON", reason)


def _too_deep() -> TooMuchStructure:
    return _too_much(f"it is nested in more than {MAX_NESTED} levels")


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTED + 1):
        holders = [each for each in level if isinstance(each, dict | list)]
        if not holders:
            return
        level = [inner for each in holders for inner in (each.values() if isinstance(each, dict) else each)]
    raise _too_deep()


def _check(strings: int, outside: int) -> None:
    if strings > MAX_STRINGS:
        raise _too_much(f"it has more than {MAX_STRINGS} strings")
    if outside > MAX_STRUCTURE:
        raise _too_much(f"it has more than {MAX_STRUCTURE} bytes outside of strings")


def _end_of_string(body: bytes | bytearray, start: int, end: int) -> int:
    """The offset of the quote that ends a string whose text begins at `start`; -1 if there is none."""
    stop = body.find(_QUOTE, start, end)
    if stop < 0 or body[stop - 1] != _BACKSLASH or stop == start:
        return stop
    position = start  # a quote that may be part of the text: read its escapes
    while position - start <= MAX_QUOTED:
        match = _INSIDE.match(body, position, min(end, position + _PIECE))
        stop = match.end() if match else position
        if stop < end and body[stop] == _QUOTE[0]:
            return stop
        if stop == position:
            return -1
        position = stop
    raise _too_much(f"a string with quotation marks in it has more than {MAX_QUOTED} bytes")
