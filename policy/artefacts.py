"""Pretrained parts that a policy starts from: files or folders, each known by its digest.

A spec names an artefact by SHA-256 and never by a path, so that equal specs mean equal policies.
A host keeps its artefacts in one folder, each named by its digest; the folder is the value of
``ARMADA_ARTEFACTS``. What is small and ours comes with the package: `policy/trunks`, each beside a
note of the command that makes it again.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from host.files import file_stamp
from policy.errors import MissingArtefact

_SHIPPED = Path(__file__).parent / "trunks"
VARIABLE = "ARMADA_ARTEFACTS"
SHA256_PATTERN = "^[0-9a-f]{64}$"


def find_artefact(sha256: str) -> Path:
    """The artefact with this digest at this host; its content is checked.

    Raises MissingArtefact: it is not there, or what lies under its name is something else.
    """
    shipped = _SHIPPED / sha256
    folder = str(_SHIPPED) if shipped.exists() else os.environ.get(VARIABLE)
    if not folder:
        raise MissingArtefact(
            f"the policy starts from artefact {sha256}: set {VARIABLE} to the folder that holds it"
        )
    path = Path(folder) / sha256
    if not path.exists():
        raise MissingArtefact(f"{path} is not there: put the artefact there, named by its digest")
    found = artefact_digest(path)
    if found != sha256:
        raise MissingArtefact(f"{path} is another one: its digest is {found}")
    return path


def artefact_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of the names and digests of all files in a folder."""
    if path.is_file():
        return _file_digest(path, file_stamp(path))
    whole = hashlib.sha256()
    for part in sorted(each for each in path.rglob("*") if each.is_file()):
        name = part.relative_to(path).as_posix()
        whole.update(f"{_file_digest(part, file_stamp(part))}  {name}\n".encode())
    return whole.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, stamp: object) -> str:
    """Read once as long as the file stays as it is."""
    del stamp
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
