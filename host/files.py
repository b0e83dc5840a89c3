"""Files that are either the old ones or the new ones, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

type FileStamp = tuple[int, int, int]


def write_durable(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content`: temporary file, fsync, rename, fsync of the folder.

    A reader sees the old bytes or the new ones, never a mixture. The folder is made when it is
    missing. Raises OSError; `path` then still holds what it held.
    """
    with durable_file(path, mode) as stream:
        stream.write(content)


@contextlib.contextmanager
def durable_file(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """The same for what is too large to hold: a file to fill, which replaces `path` at the end.

    An exception inside leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """fsync a file that was written by other means than `write_durable`."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    _sync(folder, os.O_DIRECTORY)


def sync_tree(root: Path) -> None:
    """fsync every file and folder below `root`, for what was written by others who do not."""
    for folder, _, names in os.walk(root):
        for name in names:
            _sync(Path(folder) / name)
        sync_folder(Path(folder))


def file_stamp(path: Path) -> FileStamp | None:
    """Inode, time and size: changes whenever the file is replaced. None while there is none."""
    try:
        return stamp_of(path.stat())
    except FileNotFoundError:
        return None


def stamp_of(facts: os.stat_result) -> FileStamp:
    """The same of a file that is open already."""
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
