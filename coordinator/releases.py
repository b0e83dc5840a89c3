"""Releases on disk: made in a hidden folder, shown by one rename, never changed afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

from host.files import sync_folder
from policy.release.manifest import MANIFEST_NAME, parse_manifest

_PART = ".part-"


class ReleaseRepository:
    """`<folder>/<version>/`: manifest.json and what it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def sweep(self, published: frozenset[int]) -> None:
        """At start: delete what a killed coordinator left half done or never announced."""
        for path in list(self.folder.iterdir()):
            unannounced = path.name.isdigit() and int(path.name) not in published
            if path.name.startswith(_PART) or unannounced:
                shutil.rmtree(path)

    def begin(self, version: int) -> Path:
        """An empty folder to export into."""
        part = self.folder / f"{_PART}{version}"
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        return part

    def publish(self, part: Path, version: int) -> Path:
        """Show the folder as `version`. Its files are durable already. Raises OSError."""
        target = self.folder / str(version)
        sync_folder(part)
        part.rename(target)
        sync_folder(self.folder)
        return target

    def find(self, version: int, name: str) -> Path | None:
        """The path of a file that the manifest of `version` names, or of the manifest itself."""
        folder = self.folder / str(version)
        manifest = folder / MANIFEST_NAME
        if not manifest.is_file():
            return None
        if name == MANIFEST_NAME:
            return manifest
        if name in parse_manifest(manifest.read_bytes()).files:
            path = folder / name
            return path if path.is_file() else None
        return None
