"""campaign.json: read and written whole, so that a killed coordinator goes on where it was."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from coordinator.campaign.state import CampaignState
from coordinator.errors import StateError
from host.complaints import first_complaint
from host.files import write_durable

STATE_NAME = "campaign.json"


def load_state(folder: Path) -> CampaignState:
    """The state in `folder`, a fresh one when there is none; raises StateError when unreadable."""
    path = folder / STATE_NAME
    try:
        return CampaignState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return CampaignState()
    except ValidationError as error:
        raise StateError(
            f"{path}: {first_complaint(error, STATE_NAME)}; restore it from a backup, or "
            "move the folder away to begin a new campaign"
        ) from error


def save_state(folder: Path, state: CampaignState) -> None:
    """Replace campaign.json durably."""
    state.trim()
    write_durable(folder / STATE_NAME, state.model_dump_json(indent=1).encode())
