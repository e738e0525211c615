"""The few fields of an ONNX file that opening a session reads or changes, without the packages onnx and protobuf.

To import protobuf takes as long as opening a session on kept weights, a seventh of the time to a first token. A message
keeps the fields that are not named here, and writes them back as they were. Sources: "Encoding" of protobuf's
documentation, and onnx.proto of ONNX, whose field numbers never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

FLOAT, FLOAT8E4M3FN, INT8, FLOAT16, UINT4, INT4 = 1, 17, 3, 10, 21, 22
"""Values of `data_type`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types: how a field's content is written, in the three low bits of its tag."""
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

_Sub = TypeVar("_Sub", bound="Message")


class _Field:
    """A field of a message as it is in the file.

    Args:
        content: an integer, bytes without their length, or the message that they hold, once it was asked for.
    """

    __slots__ = ("content", "number", "wire")

    def __init__(self, number: int, wire: int, content: int | bytes | memoryview | Message) -> None:
        self.number, self.wire, self.content = number, wire, content

    def written(self) -> Iterator[bytes | memoryview]:
        yield _varint(self.number << 3 | self.wire)
        if isinstance(self.content, int):
            yield _varint(self.content)
            return
        content = self.content.SerializeToString() if isinstance(self.content, Message) else self.content
        if self.wire == _BYTES:
            yield _varint(memoryview(content).nbytes)
        yield content


class Message:
    """A message of protobuf.

    Args:
        content: as it is in the file.

    Raises:
        ValueError: it is no message.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        self._fields = [*_fields(memoryview(content))]

    def SerializeToString(self) -> bytes:  # noqa: N802  # as protobuf calls it
        """The message with its changes, all other fields as they were."""
        return b"".join(part for field in self._fields for part in field.written())

    def of(self, number: int, *wires: int) -> list[_Field]:
        """The fields of a number that are written in one of these ways, in order; protobuf knows no others."""
        return [field for field in self._fields if field.number == number and field.wire in wires]

    def append(self, number: int, message: Message) -> None:
        """Add one to the messages of a number."""
        self._fields.append(_Field(number, _BYTES, message))


class _Text:
    """A string; empty if it is not there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __get__(self, message: Message, owner: type[Message]) -> str:
        found = message.of(self.number, _BYTES)
        return str(found[-1].content, "utf-8") if found else ""  # type: ignore[arg-type]

    def __set__(self, message: Message, text: str) -> None:
        message.of(self.number, _BYTES)[-1].content = text.encode()


class _Texts:
    """Strings."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __get__(self, message: Message, owner: type[Message]) -> list[str]:
        return [str(field.content, "utf-8") for field in message.of(self.number, _BYTES)]  # type: ignore[arg-type]


class _Messages(Generic[_Sub]):
    """Messages of a kind."""

    def __init__(self, number: int, kind: type[_Sub]) -> None:
        self.number, self.kind = number, kind

    def __get__(self, message: Message, owner: type[Message]) -> list[_Sub]:
        fields = message.of(self.number, _BYTES)
        for field in fields:
            if not isinstance(field.content, Message):
                field.content = self.kind(field.content)  # type: ignore[arg-type]
        return [field.content for field in fields]  # type: ignore[misc]


class Entry(Message):
    """StringStringEntryProto."""

    key, value = _Text(1), _Text(2)


class Tensor(Message):
    """TensorProto: a weight."""

    name, external_data = _Text(8), _Messages(13, Entry)

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(_integers(self.of(1, _VARINT, _BYTES)))

    @property
    def data_type(self) -> int:
        """The number of its element type."""
        return next(reversed([*_integers(self.of(2, _VARINT, _BYTES))]), 0)


class Value(Message):
    """ValueInfoProto."""

    name = _Text(1)


class Node(Message):
    """NodeProto."""

    input = _Texts(1)


class Graph(Message):
    """GraphProto."""

    node, initializer = _Messages(1, Node), _Messages(5, Tensor)
    output, value_info = _Messages(12, Value), _Messages(13, Value)

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Write its nodes in another order."""
        for field, node in zip(self.of(1, _BYTES), nodes, strict=True):
            field.content = node

    def add_output(self, value: Value) -> None:
        """Let one of its values be an output, too."""
        self.append(12, value)


class Model(Message):
    """ModelProto, a whole file."""

    metadata_props, _graphs = _Messages(14, Entry), _Messages(7, Graph)

    @property
    def graph(self) -> Graph:
        """What is computed.

        Raises:
            ValueError: there is nothing.
        """
        graphs = self._graphs
        if not graphs:
            raise ValueError("an ONNX file without a graph")
        return graphs[-1]


def _fields(content: memoryview) -> Iterator[_Field]:
    place = 0
    while place < len(content):
        tag, place = _read_varint(content, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, place = _read_varint(content, place)
            yield _Field(number, wire, value)
            continue
        if wire == _BYTES:
            length, place = _read_varint(content, place)
        elif wire in _WIDTHS:
            length = _WIDTHS[wire]
        else:
            raise ValueError(f"no message of protobuf: a field of wire type {wire}")
        end = place + length
        if not number or end > len(content):
            raise ValueError("no message of protobuf: a field ends behind the message" if number else "a field 0")
        yield _Field(number, wire, content[place:end])
        place = end


def _integers(fields: Iterable[_Field]) -> Iterator[int]:
    """Integers of a repeated field, one by one or many in one field ("packed")."""
    for field in fields:
        if isinstance(field.content, int):
            yield field.content
            continue
        content, place = memoryview(field.content), 0  # type: ignore[arg-type]
        while place < len(content):
            number, place = _read_varint(content, place)
            yield number


def _read_varint(content: memoryview, place: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while place < len(content) and shift < 70:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("no message of protobuf: an integer has no end")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
