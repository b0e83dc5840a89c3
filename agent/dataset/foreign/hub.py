"""Where a dataset lies: a folder of this machine, or a copy of a hub's repository."""

from __future__ import annotations

import re
from pathlib import Path

from agent.dataset.errors import BadForeignDataset, HubUnreachable

_REPOSITORY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")


def locate(dataset: str, revision: str | None) -> Path:
    """The folder of a dataset; one that is not here is fetched from its hub, whole.

    Raises BadForeignDataset: neither a folder nor a repository's id, or none of that name.
    HubUnreachable: there is no way to the hub and no earlier copy.
    """
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return folder
    if not _REPOSITORY.match(dataset):
        raise BadForeignDataset(f"{dataset}: neither a folder nor the id of a repository")
    # Imported here: it costs half a second, and a folder needs none of it.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=revision))
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise BadForeignDataset(
                f"{dataset}: the hub has no such dataset, or it is not yours to read ({status})"
            ) from error
        raise _unreachable(dataset, f"the hub answers {status}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise _unreachable(dataset, str(error).splitlines()[0][:200]) from error


def _unreachable(dataset: str, reason: str) -> HubUnreachable:
    return HubUnreachable(
        f"{dataset}: the hub cannot be reached and there is no earlier copy ({reason}); "
        "download it on a machine that can, and import its folder"
    )
