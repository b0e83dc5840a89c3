"""Six servos as bytes on a real pseudo-terminal, with the faults that a bus really has."""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import threading
import time
import tty
from collections.abc import Callable

from robot_io.packet import (
    BROADCAST_ID,
    Instruction,
    InstructionPacket,
    PacketParser,
    StatusPacket,
)
from robot_io.sts3215 import MODEL_NUMBER, REGISTERS

IDS = (1, 2, 3, 4, 5, 6)


class FakeServos:
    """A thread that answers on the master side; ``port`` is what a host opens.

    Faults, each a plain attribute:
        mute: ids that do not answer.
        deaf: ids that neither answer nor obey.
        spoil: (frame) -> what to send instead of the next frames, taken from the front; None in
            it lets a frame pass.
        late_s: seconds by which the next replies come late, taken from the front. Replies to
            later requests overtake a late one.
        error: error byte of each id's status packets.
    """

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.port = os.ttyname(self.slave)
        self.memory = {servo_id: bytearray(128) for servo_id in IDS}
        self.requests: list[InstructionPacket] = []
        self.mute: set[int] = set()
        self.deaf: set[int] = set()
        self.spoil: list[Callable[[bytes], bytes] | None] = []
        self.late_s: list[float] = []
        self.error: dict[int, int] = {}
        self.on_write: Callable[[int, int, bytes], None] | None = None
        for servo_id in IDS:
            for name, value in {
                "Model_Number": MODEL_NUMBER,
                "ID": servo_id,
                "Max_Position_Limit": 4095,
                "P_Coefficient": 32,
                "D_Coefficient": 32,
                "Return_Delay_Time": 250,
                "Phase": 0x1C,
                "Max_Torque_Limit": 1000,
                "Lock": 1,
                "Present_Position": 2000 + servo_id,
                "Present_Voltage": 74,
                "Present_Temperature": 30,
            }.items():
                self.set(servo_id, name, value)
        self._waiting: list[tuple[float, int, bytes]] = []
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def set(self, servo_id: int, name: str, value: int) -> None:
        register = REGISTERS[name]
        self.memory[servo_id][register.address : register.end] = register.encode(value)

    def get(self, servo_id: int, name: str) -> int:
        register = REGISTERS[name]
        return register.decode(self.memory[servo_id][register.address : register.end])

    def unplug(self) -> None:
        """As if the adapter was pulled: both ends are closed."""
        self.stop()
        with contextlib.suppress(OSError):
            os.close(self.master)
        with contextlib.suppress(OSError):
            os.close(self.slave)

    def stop(self) -> None:
        if self._thread.is_alive():
            os.write(self._stop_w, b"x")
            self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(PermissionError):  # servos do not wait for a busy machine
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        parser = PacketParser(InstructionPacket)
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        poll.register(self._stop_r, select.POLLIN)
        while True:
            timeout_ms = None
            if self._waiting:
                timeout_ms = max(0.0, self._waiting[0][0] - time.monotonic()) * 1000
            ready = dict(poll.poll(timeout_ms))
            if self._stop_r in ready:
                return
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                os.write(self.master, heapq.heappop(self._waiting)[2])
            if self.master in ready:
                for request in parser.feed(os.read(self.master, 4096)):
                    self.requests.append(request)
                    self._obey(request)

    def _obey(self, request: InstructionPacket) -> None:
        params = request.params
        match request.instruction:
            case Instruction.PING:
                self._answer(request.servo_id, b"")
            case Instruction.READ:
                self._answer(request.servo_id, self._bytes(request.servo_id, *params))
            case Instruction.WRITE:
                self._store(request.servo_id, params[0], params[1:])
                self._answer(request.servo_id, b"")
            case Instruction.SYNC_READ:
                for servo_id in params[2:]:
                    self._answer(servo_id, self._bytes(servo_id, params[0], params[1]))
            case Instruction.SYNC_WRITE:
                size = params[1]
                for at in range(2, len(params), size + 1):
                    self._store(params[at], params[0], params[at + 1 : at + 1 + size])

    def _bytes(self, servo_id: int, address: int, size: int) -> bytes:
        return bytes(self.memory.get(servo_id, bytearray(128))[address : address + size])

    def _store(self, servo_id: int, address: int, data: bytes) -> None:
        if servo_id in self.memory and servo_id not in self.deaf:
            self.memory[servo_id][address : address + len(data)] = data
            if self.on_write is not None:
                self.on_write(servo_id, address, data)

    def _answer(self, servo_id: int, params: bytes) -> None:
        if servo_id == BROADCAST_ID or servo_id not in self.memory:
            return
        if servo_id in self.mute or servo_id in self.deaf:
            return
        frame = StatusPacket(servo_id, self.error.get(servo_id, 0), params).encode()
        change = self.spoil.pop(0) if self.spoil else None
        if change is not None:
            frame = change(frame)
        late_s = self.late_s.pop(0) if self.late_s else 0.0
        if late_s > 0:
            heapq.heappush(self._waiting, (time.monotonic() + late_s, len(self._waiting), frame))
        else:
            os.write(self.master, frame)
