"""The bus process: two pseudo-terminals, and behind each the firmware of six servos.

    python -m robot_io.twin.wire PARENT SHARED_FD LINK_FD DIR SEED BUS_TIMING USB_LATENCY_S

A port is a pty whose slave end stays open here, so that a client may come and go. With bus timing
on, an answer arrives when the wire would have carried request, pauses and answer at the baud rate
that the client set, plus the USB adapter's latency. Unplugging hangs the pty up; plugging in
again puts a new one behind the same link.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robot_io.packet import InstructionPacket, PacketParser
from robot_io.twin.chain import Chain, ChainAnswer
from robot_io.twin.children import act_as_hardware, become_child, receive, reply
from robot_io.twin.errors import BadRequest
from robot_io.twin.faults import Fault, FaultKind, FaultPlan, parse_fault
from robot_io.twin.firmware import Measured, ServoFirmware
from robot_io.twin.memory import SERVO_IDS, EepromKeeper, load_assembly, load_eeprom
from robot_io.twin.motor import encoder_ticks
from robot_io.twin.shared import ARMS, Servo, SharedState

_BITS_PER_BYTE = 10
_READ_BYTES = 4096
# struct termios2 and its ioctl (asm-generic): the only way to see a rate that has no B constant.
_TCGETS2 = 0x802C542A
_TERMIOS2 = struct.Struct("=4IB19B2I")

_PRIORITY = 30  # above the agents' control loops, which wait for the servos


class PseudoPort:
    """One pty behind a link in the twin's folder."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master: int | None = None
        self._slave = -1
        self.plug_in()

    def plug_in(self) -> None:
        """Open a pty at 1 Mbaud and point the link at it; nothing when plugged in already."""
        if self.master is not None:
            return
        master, slave = os.openpty()
        tty.setraw(slave)
        attributes = termios.tcgetattr(slave)
        attributes[4] = attributes[5] = termios.B1000000
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        os.set_blocking(master, False)
        temporary = self.link.with_name(self.link.name + ".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.ttyname(slave))
        temporary.replace(self.link)
        self.master, self._slave = master, slave

    def unplug(self) -> None:
        """Hang up: the link goes and the client's descriptor fails with EIO."""
        if self.master is None:
            return
        self.link.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(self.master)
        self.master = None

    def baud(self) -> int:
        """The rate that the client has set."""
        raw = fcntl.ioctl(self._slave, _TCGETS2, bytes(_TERMIOS2.size))
        return int(_TERMIOS2.unpack(raw)[-1])

    def read(self) -> bytes:
        """What the client has written, or nothing."""
        if self.master is None:
            return b""
        try:
            return os.read(self.master, _READ_BYTES)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        """Send to the client; like a UART, what nobody fetches is lost."""
        if self.master is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self.master, data)


class ArmBus:
    """One arm: port, chain, faults, and the answers on their way."""

    def __init__(
        self,
        arm: str,
        port: PseudoPort,
        shared: SharedState,
        centre_tick: tuple[int, ...],
        eeprom: dict[int, bytes],
        dice: random.Random,
        timing: bool,
        usb_latency_s: float,
    ) -> None:
        self.arm = arm
        self.port = port
        self.faults = FaultPlan(dice)
        self._shared = shared
        self._centre = np.array(centre_tick, float)
        self._timing = timing
        self._usb_latency_s = usb_latency_s
        self._wire_free_s = 0.0
        self._parser = PacketParser(InstructionPacket)
        self._rows: list[list[float]] = []
        self._ticks: list[float] = []
        self.sample()
        self._places = {
            place: ServoFirmware(place, self._measure(place - 1), eeprom.get(place))
            for place in SERVO_IDS
        }
        self.chain = Chain(self._places)

    def sample(self) -> None:
        """Look at encoders and motors; what follows answers with this."""
        block = self._shared.servos[self.arm].read()
        self._rows = block.tolist()
        self._ticks = encoder_ticks(block[:, Servo.ANGLE_RAD], self._centre).tolist()

    def publish(self) -> None:
        """Tell the motors what the registers say."""
        rows = [servo.command_row() for servo in self._places.values()]
        self._shared.commands[self.arm].publish(np.array(rows))

    def eeprom(self) -> dict[int, bytes]:
        """What a power cycle keeps, by place in the chain."""
        return {place: servo.saved_eeprom for place, servo in self._places.items()}

    def apply_overrides(self) -> None:
        """Let servo faults act on registers and motors."""
        for servo in self._places.values():
            servo.override = self.faults.override(servo.servo_id)
        self.publish()

    def receive(self, now_s: float) -> tuple[list[tuple[float, bytes]], bool]:
        """Carry out what the client wrote.

        Returns the answers as (due on the monotonic clock, bytes), and whether EEPROM changed.
        """
        data = self.port.read()
        due: list[tuple[float, bytes]] = []
        changed = False
        if not data:
            return due, changed
        packets = self._parser.feed(data)
        if not packets:
            return due, changed
        self.sample()
        baud = self.port.baud()
        byte_s = _BITS_PER_BYTE / baud if self._timing and baud else 0.0
        written = False
        for packet in packets:
            outcome = self.chain.handle(packet, baud)
            written |= outcome.written
            changed |= outcome.eeprom_changed
            request_bytes = len(packet.params) + 6
            start_s = max(now_s, self._wire_free_s) + request_bytes * byte_s
            due += self._transmit(outcome.answers, start_s, byte_s)
        if written:
            self.publish()
        return due, changed

    def _transmit(
        self, answers: tuple[ChainAnswer, ...], at_s: float, byte_s: float
    ) -> list[tuple[float, bytes]]:
        """When each answer's bytes reach the host; those of one moment are joined."""
        sent: list[tuple[float, bytes]] = []
        late_s = 0.0
        pending = b""
        for answer in answers:
            if self._timing:
                at_s += answer.delay_s
            frame = answer.packet.encode()
            if self.faults.active:
                passed = self.faults.transmit(answer.packet.servo_id, frame)
                frame = passed.data
                if passed.extra_delay_s:
                    if pending:
                        sent.append((at_s + late_s + self._usb_latency_s, pending))
                        pending = b""
                    late_s += passed.extra_delay_s
            at_s += len(frame) * byte_s
            pending += frame
        if pending:
            sent.append((at_s + late_s + self._usb_latency_s, pending))
        self._wire_free_s = at_s
        return sent

    def _measure(self, index: int) -> Callable[[], Measured]:
        return lambda: Measured(self._ticks[index], self._rows[index])


class BusProcess:
    """Both arms, the faults' timers, and the link to the main process."""

    def __init__(self, buses: dict[str, ArmBus], keeper: EepromKeeper, link: socket.socket) -> None:
        self._buses = buses
        self._keeper = keeper
        self._link = link
        self._queue: list[tuple[float, int, ArmBus, bytes]] = []
        self._order = 0

    def run(self, running: Callable[[], bool]) -> None:
        """Serve until told to stop or the main process is gone."""
        for bus in self._buses.values():
            bus.publish()
        while running():
            ports = {
                bus.port.master: bus for bus in self._buses.values() if bus.port.master is not None
            }
            link = self._link.fileno()
            wait_s = 0.25
            if self._queue:
                wait_s = min(wait_s, max(0.0, self._queue[0][0] - time.monotonic()))
            ready, _, _ = select.select([*ports, link], [], [], wait_s)
            self._deliver()
            for descriptor in ready:
                if descriptor != link:
                    self._serve(ports[descriptor])
            self._deliver()
            if link in ready and not self._obey():
                break
            self._expire()
        for bus in self._buses.values():
            bus.port.unplug()
        self._keeper.close()

    def _serve(self, bus: ArmBus) -> None:
        due, changed = bus.receive(time.monotonic())
        for at_s, data in due:
            self._order += 1
            heapq.heappush(self._queue, (at_s, self._order, bus, data))
        if changed:
            self._keeper.keep(bus.arm, bus.eeprom())

    def _deliver(self) -> None:
        while self._queue and self._queue[0][0] <= time.monotonic():
            _, _, bus, data = heapq.heappop(self._queue)
            bus.port.write(data)

    def _expire(self) -> None:
        now_s = time.monotonic()
        for bus in self._buses.values():
            if bus.faults.active and bus.faults.expire(now_s):
                bus.apply_overrides()

    def _obey(self) -> bool:
        try:
            message = receive(self._link)
        except EOFError:
            return False
        if message is None:
            return True
        request, _ = message
        try:
            self._carry_out(request)
        except BadRequest as error:
            reply(self._link, error=str(error))
        else:
            reply(self._link, ok=True)
        return True

    def _carry_out(self, request: dict[str, Any]) -> None:
        names = [request["arm"]] if request.get("arm") else list(ARMS)
        if request["op"] == "clear_faults":
            for name in names:
                self._buses[name].faults.clear()
                self._buses[name].apply_overrides()
                self._buses[name].port.plug_in()
            return
        fault = parse_fault(request, time.monotonic())
        for name in names:
            self._inject(self._buses[name], fault)

    def _inject(self, bus: ArmBus, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.UNPLUG:
                self._queue = [entry for entry in self._queue if entry[2] is not bus]
                heapq.heapify(self._queue)
                bus.port.unplug()
            case FaultKind.REPLUG:
                bus.port.plug_in()
            case _:
                bus.faults.add(
                    Fault(fault.kind, fault.servo_id, fault.count, fault.until_s, fault.delay_s)
                )
                bus.apply_overrides()


def main(argv: list[str]) -> int:
    """Process entry, started by `robot_io.twin.launcher`."""
    parent, shared_fd, link_fd, folder, seed, timing, usb_latency_s = argv
    running = become_child(int(parent))
    shared = SharedState(int(shared_fd))
    link = socket.socket(fileno=int(link_fd))
    directory = Path(folder)
    assembly = load_assembly(directory, int(seed))
    dice = random.Random(int(seed))  # noqa: S311 - noise on a wire is no secret
    buses = {
        arm: ArmBus(
            arm,
            PseudoPort(directory / arm),
            shared,
            assembly.centre_tick[arm],
            load_eeprom(directory, arm),
            dice,
            timing == "1",
            float(usb_latency_s),
        )
        for arm in ARMS
    }
    act_as_hardware(_PRIORITY)
    reply(link, ready=True)
    BusProcess(buses, EepromKeeper(directory), link).run(running)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
