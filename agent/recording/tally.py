"""How much is recorded: counted from the journals at the start, kept up with each episode."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadJournal, UnreadableJournal
from agent.recording.journal import FINISHED, EpisodeReader

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Episodes and frames in total, and those of this session (since the agent's start)."""

    episodes: int = 0
    frames: int = 0
    session_episodes: int = 0
    session_frames: int = 0

    @classmethod
    def of_folder(cls, folder: Path) -> Tally:
        """Count the finished episodes in `folder` and below: also ingested and refused ones."""
        tally = cls()
        for path in sorted(folder.rglob(f"*{FINISHED}")):
            try:
                end = EpisodeReader(path).end
            except (BadJournal, UnreadableJournal) as error:
                log.warning("not counted: %s", error)
                continue
            if end is not None:
                tally.episodes += 1
                tally.frames += end.frames
        return tally

    def add(self, frames: int) -> None:
        """One more episode is saved."""
        self.episodes += 1
        self.frames += frames
        self.session_episodes += 1
        self.session_frames += frames
