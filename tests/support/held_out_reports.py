"""Held-out reports for tests: what a robot says of a base, episode by episode."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.messages import EpisodeError, HeldOutReport


def report(
    error: float | Sequence[float],
    *,
    base_round: int = 1,
    episodes: int = 5,
    frames: int = 200,
    hold_still: float = 20.0,
    nearest: float = 10.0,
    first: int = 0,
    joints: Sequence[float] = (),
) -> HeldOutReport:
    """One error for all episodes or one for each; `frames` of each; keys count from `first`."""
    errors = [error] * episodes if isinstance(error, (int, float)) else list(error)
    return HeldOutReport(
        round=base_round,
        action_mae=sum(errors) / len(errors) if errors else 0.0,
        loss=0.1,
        frames=frames * len(errors),
        episodes=tuple(
            EpisodeError(
                key=f"{first + number:016x}",
                frames=frames,
                error=each,
                hold_still=hold_still,
                nearest=nearest,
            )
            for number, each in enumerate(errors)
        ),
        joints=tuple(joints),
    )
