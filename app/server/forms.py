"""The one file of a form while it comes: nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ldm.errors import Code, LdmError


def boundary_of(kind: str) -> bytes:
    """What stands between the parts."""
    boundary = parse_options_header(kind)[1].get(b"boundary", b"")
    if not boundary:
        raise _unread("It does not say what stands between its parts.")
    return boundary


class Form:
    """`feed` it bytes; what comes back is of the file."""

    def __init__(self, boundary: bytes) -> None:
        self.name = ""  # of the file, once its head has come
        self._parts, self._found = 0, list[bytes]()
        self._field, self._value = bytearray(), bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_begin": self._next,
                    "on_header_field": self._add_field,
                    "on_header_value": self._add_value,
                    "on_header_end": self._head,
                    "on_part_data": self._data,
                },
            )
        except FormParserError as error:
            raise _unread(f"{error}.") from error

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _unread("Its parts do not begin and end as they should.") from error
        found, self._found = self._found, []
        yield from found

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            why = "One file is taken at a time, and the name is part of the address: ?name=NAME."
            raise LdmError(Code.USAGE, "The form has several parts.", why, "Send a form of one file.")

    def _next(self) -> None:
        self._field, self._value = bytearray(), bytearray()

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _head(self) -> None:
        if self._field.lower() == b"content-disposition":
            told = parse_options_header(bytes(self._value))[1].get(b"filename", b"")
            self.name = told.decode("utf-8", "replace")[:1000]

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])


def _unread(why: str) -> LdmError:
    return LdmError(Code.USAGE, "The form cannot be read.", why, "Send the file itself as the body.")
