"""What outlives a run of the twin: how its arms were assembled, and each servo's EEPROM.

``assembly.json`` holds the encoder's reading at each joint's zero angle (how the horn happened to
be put on), drawn once from the seed. ``<arm>.eeprom.json`` holds the first 40 bytes of each
servo's control table in hex. Both are replaced whole: temp, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.files import write_durable
from robot_io.sts3215 import EEPROM_END, RESOLUTION
from robot_io.twin.errors import BadMemory
from robot_io.twin.shared import ARMS, N_JOINTS

_LOG = logging.getLogger(__name__)
# A homing offset is at most 2047 either way: an arm homed a little off its middle must still fit.
_SEAM_MARGIN_TICK = 60
SERVO_IDS = tuple(range(1, N_JOINTS + 1))


@dataclass(frozen=True, slots=True)
class Assembly:
    """``centre_tick[arm][joint]``: the encoder's reading at the joint's angle 0."""

    seed: int
    centre_tick: Mapping[str, tuple[int, ...]]


def load_assembly(folder: Path, seed: int) -> Assembly:
    """The assembly of this folder's arms; made from ``seed`` and kept when there is none.

    Raises:
        BadMemory: the file there is not one of ours.
    """
    path = folder / "assembly.json"
    if path.exists():
        kept = _read_json(path)
        try:
            centre = {arm: tuple(int(tick) for tick in kept["centre_tick"][arm]) for arm in ARMS}
            known = Assembly(int(kept["seed"]), centre)
        except (KeyError, TypeError, ValueError) as error:
            raise BadMemory(f"{path}: no twin's assembly ({error!r}); delete the file") from error
        if any(len(ticks) != N_JOINTS for ticks in centre.values()):
            raise BadMemory(f"{path}: needs {N_JOINTS} ticks an arm; delete the file")
        if known.seed != seed:
            _LOG.warning("%s was assembled with seed %d, which stays", folder, known.seed)
        return known
    draw = random.Random(seed)  # noqa: S311 - where a horn sits is no secret
    fresh = Assembly(
        seed,
        {
            arm: tuple(
                draw.randrange(_SEAM_MARGIN_TICK, RESOLUTION - _SEAM_MARGIN_TICK)
                for _ in range(N_JOINTS)
            )
            for arm in ARMS
        },
    )
    text = json.dumps({"seed": seed, "centre_tick": dict(fresh.centre_tick)}, indent=1)
    write_durable(path, text.encode())
    return fresh


def load_eeprom(folder: Path, arm: str) -> dict[int, bytes]:
    """EEPROM by position in the chain (1..6); empty for an arm that was never configured.

    Raises:
        BadMemory: the file there is not one of ours.
    """
    path = folder / f"{arm}.eeprom.json"
    if not path.exists():
        return {}
    kept = _read_json(path)
    try:
        tables = {int(place): bytes.fromhex(text) for place, text in kept.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise BadMemory(f"{path}: no EEPROM of a twin ({error!r}); delete the file") from error
    if set(tables) != set(SERVO_IDS) or any(len(t) != EEPROM_END for t in tables.values()):
        raise BadMemory(f"{path}: needs {EEPROM_END} bytes of six servos; delete the file")
    return tables


def _read_json(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadMemory(f"{path}: cannot be read ({error}); delete the file") from error
    if not isinstance(kept, dict):
        raise BadMemory(f"{path}: holds no JSON object; delete the file")
    return kept


class EepromKeeper:
    """Writes EEPROM images in a thread of its own: an fsync must not delay an answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[int, bytes]] = {}
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="eeprom", daemon=True)
        self._thread.start()

    def keep(self, arm: str, tables: Mapping[int, bytes]) -> None:
        """Have ``tables`` written soon; only the newest of several is."""
        with self._lock:
            self._waiting[arm] = dict(tables)
        self._news.set()

    def close(self) -> None:
        """Write what waits, then end."""
        self._closing = True
        self._news.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            closing = self._closing
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            for arm, tables in waiting.items():
                text = json.dumps({str(place): data.hex() for place, data in tables.items()})
                write_durable(self._folder / f"{arm}.eeprom.json", text.encode())
            if closing:
                return
