"""One release's whole life in a process that kills itself (SIGKILL) at one write of its state.

Arguments: the robot's folder (a bundle, with policies/ and downloads/), a state, `before` or
`after` the rename that makes the state durable, the scene, and the notice as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agent.config import TrialConfig
from agent.policies import updater
from agent.policies.qualification import Qualification
from agent.policies.store import PolicyStore
from agent.policies.trials import PolicyTrials
from agent.policies.updater import PolicyUpdater
from protocol.bundle import load_bundle
from protocol.messages import ReleaseNotice

RULES = TrialConfig(shadow_s=5.0, canary_episodes=2)
WELL = {"outcome": "ran its time", "ticks": 60, "clamped_ticks": 0, "inference": {"fault": None}}
ILL = {**WELL, "outcome": "fault: hangs", "inference": {"fault": "it does not answer"}}
VERDICTS = {
    "content": [Qualification(False, reasons=("golden actions differ",))],
    "busy": [Qualification(False, reasons=("900 ms",), cause="load"), Qualification(True)],
}


def die_at(state: str, when: str, digest: str) -> None:
    """Kill this process just before, or right after, the book says so."""
    due = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal due
        if due:
            due = False  # os.kill is an event, too
            os.kill(os.getpid(), signal.SIGKILL)
        if event != "os.rename" or not str(arguments[1]).endswith("/active.json"):
            return
        record = json.loads(Path(str(arguments[0])).read_bytes())["releases"].get(digest)
        if record is not None and record["state"] == state:
            if when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            due = True  # at the next step to disk, which comes after the rename

    sys.addaudithook(watch)


def live(folder: Path, scene: str, notice: ReleaseNotice) -> None:
    store = PolicyStore(folder / "policies")
    verdicts = VERDICTS.get(scene, [Qualification(True)])
    updater.qualify = lambda *_: verdicts.pop(0)  # type: ignore[assignment]
    updater.busy = lambda: updater.Pause(0.05, 0.05)  # type: ignore[assignment]
    bundle, downloads = load_bundle(folder), folder / "downloads"
    worker = PolicyUpdater(bundle, store, downloads, RULES, None, lambda: None)
    worker.start()
    worker.offer(notice)
    while True:
        record = store.book().releases.get(notice.manifest_digest)
        if record is not None and not record.state.arriving:
            break
        time.sleep(0.01)
    trials = PolicyTrials(store, RULES)
    version = str(notice.version)
    if scene == "shadow_fault":
        trials.shadow_seen(version, {"seconds": 1.0, "fault": "an action is not finite"})
        return
    trials.shadow_seen(version, {"seconds": 5.0, "difference": 2.0, "fault": None})
    if scene == "set_aside":
        trials.use("1")
        return
    for episode in (ILL,) if scene == "fault" else (WELL, WELL):
        trials.armed(trials.to_drive("active"))
        trials.drive_begins()
        trials.drive_ended(episode)
    if scene == "retired":
        trials.use("1")


def main() -> None:
    folder, state, when, scene, text = sys.argv[1:]
    notice = ReleaseNotice.model_validate_json(text)
    die_at(state, when, notice.manifest_digest)
    live(Path(folder), scene, notice)
    sys.exit("it was not killed")


if __name__ == "__main__":
    main()
