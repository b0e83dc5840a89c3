"""Shared memory between the twin's processes: float64 blocks, each with one writer.

One anonymous file (memfd) is mapped by all. A block is a sequence number and an array; the writer
makes the number odd, copies, makes it even (a seqlock), so that a reader gets a whole snapshot
without a lock that a stopped process could hold. Nothing is pickled and nothing has a name in the
file system that could be left behind.

| block | writer | shape |
|---|---|---|
| ``commands(arm)`` | bus | [6, len(SharedCommand)] what a servo's firmware asks of its motor |
| ``servos(arm)`` | physics | [6, len(Servo)] what each motor and encoder measures |
| ``world`` | physics | [len(World)] clock, success, counters |
| ``table`` | physics | [MAX_OBJECTS, 4] x, y, z in metres and yaw of each object of the task |
| ``pose`` | physics | [N_POSE] what a picture depends on, for the renderer |
"""

from __future__ import annotations

import mmap
import os
import time
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from robot_io.calibration import JOINTS
from robot_io.twin.errors import TornRead
from robot_io.twin.objects import MAX_CUBES, MAX_MARKS

ARMS = ("follower", "leader")
N_JOINTS = len(JOINTS)

Float = NDArray[np.float64]


class SharedCommand(IntEnum):
    """Columns of a command block: the servo's registers, as the motor model needs them."""

    TORQUE_ENABLE = 0
    MODE = 1
    GOAL_TICK = 2
    GOAL_VELOCITY_TICK_S = 3
    MAX_VELOCITY_TICK_S = 4
    ACCELERATION_TICK_S2 = 5
    OFFSET_TICK = 6
    P_GAIN = 7
    D_GAIN = 8
    TORQUE_LIMIT = 9  # 0..1 of stall torque
    PROTECTIVE_TORQUE = 10  # 0..1
    OVERLOAD_TORQUE = 11  # 0..1
    PROTECTION_TIME_S = 12
    PROTECTION_CURRENT_MA = 13
    OVERCURRENT_TIME_S = 14
    MAX_TEMPERATURE_C = 15
    UNLOAD_ON = 16  # bits of ServoError at which the motor lets go
    FORCED_ERROR = 17  # bits of ServoError that a fault injection holds


class Servo(IntEnum):
    """Columns of a servo block."""

    ANGLE_RAD = 0
    VELOCITY_RAD_S = 1
    LOAD = 2  # -1..1 of stall torque
    CURRENT_MA = 3
    TEMPERATURE_C = 4
    VOLTAGE_V = 5
    ERROR = 6
    MOVING = 7


class World(IntEnum):
    """Entries of the world block."""

    SIM_TIME_S = 0
    CUBE_HIGHEST_M = 1  # highest z of the first cube's centre since it was last placed
    LATE_STEPS = 2
    LOST_S = 3  # time that physics gave up catching up with
    WORST_LAG_S = 4
    HAND_FOLLOWER = 5  # number of the plan whose motion is finished, per arm
    HAND_LEADER = 6
    PLACED = 7  # number of the last placement carried out
    SUCCEEDED = 8  # whether the task is done as things stand


MAX_OBJECTS = MAX_CUBES + MAX_MARKS
N_POSE = N_JOINTS + 7 * MAX_CUBES + 3 * MAX_MARKS
_TRIES = 2000


class Block:
    """One seqlocked array in the mapping."""

    def __init__(self, buffer: mmap.mmap, offset: int, shape: tuple[int, ...]) -> None:
        self._sequence: NDArray[np.int64] = np.ndarray((1,), np.int64, buffer, offset)
        self._data: Float = np.ndarray(shape, np.float64, buffer, offset + 8)
        self.size_bytes = 8 + self._data.nbytes

    @property
    def sequence(self) -> int:
        """Changes with every publication."""
        return int(self._sequence[0])

    def publish(self, values: Float) -> None:
        """Replace the whole block. Only its one writer may call this."""
        self._sequence[0] += 1
        self._data[...] = values
        self._sequence[0] += 1

    def read(self) -> Float:
        """A copy of the newest whole publication.

        Raises:
            TornRead: no whole publication could be had within about a second.
        """
        for attempt in range(_TRIES):
            before = int(self._sequence[0])
            if not before & 1:
                copy: Float = self._data.copy()
                if int(self._sequence[0]) == before:
                    return copy
            if attempt > 100:  # the writer lost the processor in the middle
                time.sleep(0.0005)
        raise TornRead("a shared block stayed half-written: its process must have died")


class SharedState:
    """The mapping and its blocks, by descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        shapes: list[tuple[int, ...]] = [
            *((N_JOINTS, len(SharedCommand)) for _ in ARMS),
            *((N_JOINTS, len(Servo)) for _ in ARMS),
            (len(World),),
            (MAX_OBJECTS, 4),
            (N_POSE,),
        ]
        size = sum(8 + 8 * int(np.prod(shape)) for shape in shapes)
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._map = mmap.mmap(descriptor, size)
        blocks = []
        offset = 0
        for shape in shapes:
            block = Block(self._map, offset, shape)
            offset += block.size_bytes
            blocks.append(block)
        self.commands = dict(zip(ARMS, blocks[:2], strict=True))
        self.servos = dict(zip(ARMS, blocks[2:4], strict=True))
        self.world = blocks[4]
        self.table = blocks[5]
        self.pose = blocks[6]

    @classmethod
    def create(cls) -> SharedState:
        """A new mapping, all zeros."""
        descriptor = os.memfd_create("armada-twin", os.MFD_CLOEXEC)
        return cls(descriptor)
