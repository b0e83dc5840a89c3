"""Records out of an MCAP file that may hold any bytes at all.

The library's own readers believe every length they find: they allocate it, take a negative one for
"all the rest", and unpack chunks of any size. Here a record is bounded first; then its body alone
goes to the library's parser.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Header, Message, Metadata, MetadataIndex

MAX_PICTURE_BYTES = 64 << 20
MAX_TEXT_BYTES = 1 << 20  # everything that is not a message
_MAGIC = b"\x89MCAP0\r\n"
_HEAD = struct.Struct("<BQ")  # opcode, length of the body
_FOOTER = struct.Struct("<BQQQI")  # head, start of the summary, of its offsets, summary CRC
_DATA_END = struct.Struct("<I")  # CRC of all before it

type Record = Header | Channel | Metadata | Message


class Damaged(ValueError):
    """These bytes are no MCAP file of ours."""


class CutOff(Damaged):
    """The file ends within a record."""


def data_records(file: IO[bytes], *, finished: bool) -> Iterator[Record]:
    """Header, channels, metadata and messages in order, read once from the file's start.

    A finished file must end its data with the CRC of all of it; any other ends at its last complete
    record. Raises Damaged.
    """
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise Damaged("it does not begin like an MCAP file")
    crc = zlib.crc32(_MAGIC)
    try:
        for opcode, head, body in _frames(file, _size(file) - len(_MAGIC)):
            if opcode == Opcode.DATA_END:
                if body != _DATA_END.pack(crc):
                    raise Damaged("the checksum of its data is wrong")
                return
            crc = zlib.crc32(body, zlib.crc32(head, crc))
            parsed = _parse(opcode, body)
            if isinstance(parsed, Header | Channel | Metadata | Message):
                yield parsed
        raise CutOff("the end of its data is missing")
    except CutOff:
        if finished:
            raise


def indexed_metadata(file: IO[bytes], name: str) -> Metadata:
    """One metadata record of a finished file, found through its index. Raises Damaged."""
    tail_bytes = _FOOTER.size + len(_MAGIC)
    footer_at = _size(file) - tail_bytes
    if footer_at < 0:
        raise CutOff("it is too short for an MCAP file")
    file.seek(footer_at)
    tail = file.read(tail_bytes)
    opcode, length, summary_at, _, crc = _FOOTER.unpack_from(tail)
    if (opcode, length) != (Opcode.FOOTER, _FOOTER.size - _HEAD.size) or tail[-8:] != _MAGIC:
        raise CutOff("it does not end like an MCAP file")
    if not footer_at - MAX_TEXT_BYTES <= summary_at <= footer_at:
        raise Damaged("its footer is wrong")
    file.seek(summary_at)
    summary = file.read(footer_at - summary_at)
    if zlib.crc32(summary + tail[: _FOOTER.size - 4]) != crc:
        raise Damaged("the checksum of its index is wrong")
    for opcode, _, body in _frames(io.BytesIO(summary), len(summary)):
        index = _parse(opcode, body)
        if isinstance(index, MetadataIndex) and index.name == name and index.offset < summary_at:
            file.seek(index.offset)
            opcode, _, body = next(_frames(file, summary_at - index.offset))
            found = _parse(opcode, body)
            if isinstance(found, Metadata) and found.name == name:
                return found
    raise Damaged(f"it has no {name} record")


def _frames(stream: IO[bytes], left: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Opcode, head and body of each record in the next ``left`` bytes. Raises Damaged, CutOff."""
    while left > 0:
        head = stream.read(_HEAD.size)
        opcode, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
        left -= len(head) + length
        if opcode == 0 or left < 0:  # zeros are what a power cut leaves of bytes never written
            raise CutOff("it ends within a record")
        if length > (MAX_PICTURE_BYTES if opcode == Opcode.MESSAGE else MAX_TEXT_BYTES):
            raise Damaged(f"a record of {length} bytes is too long")
        body = stream.read(length)
        if len(body) != length:
            raise CutOff("it ends within a record")
        yield opcode, head, body


def _parse(opcode: int, body: bytes) -> Record | MetadataIndex | None:
    """None for what we never look at."""
    stream = ReadDataStream(io.BytesIO(body))
    try:
        match opcode:
            case Opcode.MESSAGE:
                return Message.read(stream, len(body))
            case Opcode.HEADER:
                return Header.read(stream)
            case Opcode.CHANNEL:
                return Channel.read(stream)
            case Opcode.METADATA:
                return Metadata.read(stream)
            case Opcode.METADATA_INDEX:
                return MetadataIndex.read(stream)
    except (McapError, struct.error, UnicodeDecodeError) as error:
        raise Damaged(f"a record cannot be read: {error!r}") from error
    return None


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
