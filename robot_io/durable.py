"""Files of an arm that are either the old ones or the new ones, also after a power cut."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Put ``text`` (UTF-8) at ``path``: temporary file, fsync, rename, fsync of the folder.

    The folder must exist. Raises OSError; ``path`` then still holds what it held.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
