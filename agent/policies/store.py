"""Policies on disk, and which one drives the arm.

    <folder>/<version>/manifest.json, …              a whole release, never changed
    <folder>/<version>/.verified.json                what was hashed, see policy/release/folder.py
    <folder>/local/…                                 this robot's own, never federated policy
    <folder>/active.json                             which drives, and each release's state
    <folder>/.outgoing-*                             being deleted; swept at the next start

A version appears by one rename of a folder whose files are on disk already, and the choice of the
active one by one rename of active.json. So a kill between any two steps leaves either the old or
the new, and what is half done has a name that is never read. The federation process writes what
arrives, the supervisor what comes of it, training `local` alone; any process may read.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from agent.policies.errors import (
    NoSuchPolicy,
    PolicyDamaged,
    PolicyRefused,
    StoreDamaged,
    StoreUnusable,
)
from agent.policies.release_book import ReleaseBook
from host.complaints import first_complaint
from host.files import FileStamp, file_stamp, sync_folder, sync_tree, write_durable
from policy.errors import BadPolicyFolder, DamagedPolicyFolder
from policy.release.folder import (
    PolicyFolder,
    read_manifest,
    read_policy_folder,
    verify_policy_folder,
)

log = logging.getLogger(__name__)

ACTIVE = "active"
LOCAL = "local"
_ACTIVE_FILE = "active.json"
_OUTGOING = ".outgoing-"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
_VERSION = re.compile(r"^[0-9]{1,9}$")


class PolicyStore:
    """See the module. Every method leaves the store whole, also when it raises."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made when first written to."""
        self.folder = folder

    def install(self, whole: Path, version: int | str) -> Path:
        """Check a whole folder and move it here as the version of that name; return its new path.

        The folder lies on the store's file system. The same release installed twice is no error,
        and mends a damaged one; `local` replaces the one before. Raises PolicyRefused when a file
        does not match the manifest, or another release already has that version; OSError.
        """
        name = _checked_name(version)
        release = _verified(whole)
        if name != LOCAL and str(release.manifest.version) != name:
            raise PolicyRefused(
                f"the manifest is of version {release.manifest.version}, announced was {name}"
            )
        target = self.folder / name
        if target.exists() and name != LOCAL:
            try:
                if read_manifest(target)[0].digest() != release.manifest.digest():
                    raise PolicyRefused(f"another policy is already installed as version {name}")
                read_policy_folder(target, hash_all=True)
            except BadPolicyFolder as damage:
                log.warning("%s; it is replaced", damage)
            else:
                shutil.rmtree(whole)
                return target
        whole.chmod(0o755)  # mkdtemp makes it private
        sync_tree(whole)
        self.folder.mkdir(parents=True, exist_ok=True)
        outgoing = self._take_out(target) if target.exists() else None
        whole.rename(target)
        sync_folder(self.folder)
        if outgoing is not None:
            shutil.rmtree(outgoing)
        return target

    def book(self) -> ReleaseBook:
        """What is written down of the releases. Raises StoreDamaged."""
        path = self.folder / _ACTIVE_FILE
        try:
            return ReleaseBook.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return ReleaseBook(active=None, previous=None)
        except ValidationError as error:
            raise StoreDamaged(
                f"{path} is damaged ({first_complaint(error, 'book')}); "
                "delete it to start without a policy"
            ) from error

    def stamp(self) -> FileStamp | None:
        """Changes whenever the book does."""
        return file_stamp(self.folder / _ACTIVE_FILE)

    @contextlib.contextmanager
    def change(self) -> Iterator[ReleaseBook]:
        """Change the book, alone among all processes; it is durable when this ends.

        Nothing is written when nothing changed, or when the body raises. Raises StoreDamaged,
        StoreUnusable.
        """
        try:
            with self._alone():
                book = self.book()
                before = book.model_dump_json()
                yield book
                after = book.model_dump_json()
                if after != before:
                    write_durable(self.folder / _ACTIVE_FILE, after.encode())
        except OSError as error:
            where = error.filename or self.folder
            raise StoreUnusable(
                f"the policies in {self.folder} cannot be kept: {where}: {error.strerror}"
            ) from error

    def use(self, version: int | str) -> Path:
        """Make an installed policy the active one, from the next episode on, and pin it.

        Raises NoSuchPolicy, PolicyRefused when its files are damaged, StoreDamaged, OSError.
        """
        name = _checked_name(version)
        path = self._existing(name)
        _verified(path)
        with self.change() as book:
            book.use(name)
        return path

    def roll_back(self, reason: str = "", *, by_operator: bool = True) -> str:
        """Take away what is on trial, else go back to the previous version; see ReleaseBook.

        Raises NoSuchPolicy, PolicyRefused when the previous one's files are damaged, StoreDamaged,
        OSError.
        """
        with self.change() as book:
            on_trial = book.on_trial() is not None
            name = book.roll_back(reason, by_operator=by_operator)
            if not on_trial:
                _verified(self._existing(name))
        return name

    def active(self) -> str | None:
        """Return the active version's name, None when none was ever activated."""
        return self.book().active

    def versions(self) -> list[int]:
        """Return the installed release versions, oldest first (without `local`)."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if _VERSION.match(p.name))

    def installed(self) -> list[Path]:
        """Return the folders of all policies: the versions, oldest first, then `local`."""
        names = [*map(str, self.versions()), LOCAL]
        return [self.folder / name for name in names if (self.folder / name).is_dir()]

    def resolve(self, policy: int | str) -> Path:
        """Return the folder of "active", "local" or a version.

        Raises NoSuchPolicy, StoreDamaged.
        """
        if policy != ACTIVE:
            return self._existing(_checked_name(policy))
        book = self.book()
        name = book.to_drive()
        if name is None:
            trial = book.on_trial()
            raise NoSuchPolicy(
                "no policy is active yet: none was released to this robot, or none qualified"
                if trial is None
                else f"no policy is active yet: version {trial[1].version} is in its shadow; "
                f"teleoperate or record for a while, or `armada policy use {trial[1].version}`"
            )
        return self._existing(name)

    def prune(self, keep: int) -> list[str]:
        """Delete all but the newest `keep` versions, the active and the previous one.

        Returns the names deleted. Raises StoreDamaged, OSError.
        """
        book = self.book()
        trial = book.on_trial()
        on_trial = None if trial is None else str(trial[1].version)
        kept = {
            book.active,
            book.previous,
            on_trial,
            *map(str, self.versions()[-keep:] if keep else []),
        }
        gone = [str(version) for version in self.versions() if str(version) not in kept]
        for name in gone:
            shutil.rmtree(self._take_out(self.folder / name))
        return gone

    def sweep(self) -> None:
        """Delete what an earlier process left half done. Call once at start."""
        if not self.folder.is_dir():
            return
        with self._alone():
            for path in list(self.folder.iterdir()):
                if path.name.startswith(_OUTGOING):
                    shutil.rmtree(path)
                elif path.name.startswith(f".{_ACTIVE_FILE}."):
                    path.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The folder's lock, which the kernel lifts when its holder dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_dir():
            known = ", ".join(map(str, self.versions())) or "none"
            raise NoSuchPolicy(f"no policy {name!r} in {self.folder}; installed versions: {known}")
        return path

    def _take_out(self, path: Path) -> Path:
        """Rename a folder first: one with half of its files must not look like a version."""
        outgoing = Path(tempfile.mkdtemp(prefix=_OUTGOING, dir=self.folder))
        path.rename(outgoing / path.name)
        return outgoing


def _verified(path: Path) -> PolicyFolder:
    try:
        return verify_policy_folder(path)
    except DamagedPolicyFolder as error:
        raise PolicyDamaged(str(error)) from error
    except BadPolicyFolder as error:
        raise PolicyRefused(str(error)) from error


def _checked_name(version: int | str) -> str:
    name = str(version)
    if not _NAME.match(name) or name == ACTIVE:
        raise NoSuchPolicy(f"{name!r} is no policy's name: use active, local or a version number")
    return name
