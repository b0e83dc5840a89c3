"""A dataset that is replaced as a whole, so that a kill at any instant leaves a complete one.

LeRobot writes parquet files that are unreadable until they are closed, and rewrites info.json in
place. So nothing is ever written into the dataset that readers see. Each addition makes a new
version beside it:

    <state>/dataset              symbolic link to the newest version; replaced by one rename
    <state>/datasets/000007/     the newest
    <state>/datasets/000006/     the one before, for a reader that has just opened it
    <state>/datasets/.staging/   being filled; worthless after a kill

Files that LeRobot never touches again (data, episodes, videos) are hard links, so a version
costs only what it adds. The ledger, inside the version, says which episodes it holds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent.dataset.errors import IngestFailed
from agent.recording.ledger import LedgerEntry, read_ledger, write_ledger
from host.files import sync_folder, sync_tree

_STAGING = ".staging"
_NEXT_LINK = ".dataset.next"
_SHARED_SUFFIXES = (".parquet", ".mp4")
_REWRITTEN = "tasks.parquet"  # LeRobot writes over this one


class DatasetVersions:
    """See the module. One process writes (ingest); any may read through the link.

    Raises IngestFailed when ``link`` is something that this class did not make, BadLedger, OSError
    when the disk refuses.
    """

    def __init__(self, link: Path) -> None:
        self.link = link
        self._folder = link.parent / f"{link.name}s"
        self._known: tuple[Path, list[LedgerEntry]] | None = None
        if link.exists() and not link.is_symlink():
            raise IngestFailed(f"{link}: a folder stands there; move it away, ingest makes a link")

    @property
    def current(self) -> Path | None:
        """The newest version's own path, None before the first."""
        return self.link.resolve() if self.link.is_symlink() and self.link.exists() else None

    def ledger(self) -> list[LedgerEntry]:
        """Episodes of the newest version, in dataset order."""
        current = self.current
        if current is None:
            return []
        if self._known is None or self._known[0] != current:  # a version never changes
            self._known = (current, read_ledger(current))
        return self._known[1]

    def stage(self) -> Path:
        """A writable copy of the newest version; a path that does not exist before the first."""
        self.sweep()
        staging = self._folder / _STAGING
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.current is not None:
            _copy_sharing(self.current, staging)
        return staging

    def commit(self, entries: list[LedgerEntry]) -> Path:
        """Make the staged dataset the newest one, durably; ``entries`` is its whole ledger."""
        staging = self._folder / _STAGING
        write_ledger(staging, entries)
        sync_tree(staging)
        final = self._folder / f"{self._number() + 1:06d}"
        if final.exists():
            shutil.rmtree(final)  # a kill after its rename and before the link's: never seen
        staging.rename(final)
        sync_folder(self._folder)
        next_link = self.link.parent / _NEXT_LINK
        next_link.unlink(missing_ok=True)
        next_link.symlink_to(final.relative_to(self.link.parent))
        next_link.replace(self.link)
        sync_folder(self.link.parent)
        return final

    def sweep(self) -> None:
        """Delete what a kill left behind, and versions before the previous one."""
        if not self._folder.is_dir():
            return
        number = self._number()
        kept = {f"{number:06d}", f"{number - 1:06d}"}
        for entry in list(self._folder.iterdir()):
            if entry.is_dir() and entry.name not in kept:
                shutil.rmtree(entry)

    def _number(self) -> int:
        return 0 if self.current is None else int(self.current.name)


def _copy_sharing(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True)
        for name in names:
            old, new = Path(folder) / name, place / name
            if old.suffix in _SHARED_SUFFIXES and name != _REWRITTEN:
                os.link(old, new)
            else:
                shutil.copy2(old, new)
