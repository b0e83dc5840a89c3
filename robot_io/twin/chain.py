"""The daisy chain of one arm: instruction packets in, status packets out. Pure, no clock.

* A servo hears and speaks at its own Baud_Rate alone.
* Response_Status_Level 0 answers to ping and read alone.
* Nobody answers a broadcast, but for a ping: there all do, in the order of the chain.
* A sync read is answered in the order in which it names the servos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robot_io.packet import BROADCAST_ID, Instruction, InstructionPacket, StatusPacket
from robot_io.twin.firmware import ServoFirmware


@dataclass(frozen=True, slots=True)
class ChainAnswer:
    """One status packet, and the pause that its servo makes before it."""

    packet: StatusPacket
    delay_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one instruction led to."""

    answers: tuple[ChainAnswer, ...] = ()
    written: bool = False  # some servo's registers changed, so its motor has news
    eeprom_changed: bool = False


class Chain:
    """The servos of one arm on one wire."""

    def __init__(self, servos: Mapping[int, ServoFirmware]) -> None:
        self.servos = tuple(servos.values())

    def find(self, servo_id: int) -> tuple[ServoFirmware, ...]:
        """The servos that answer to ``servo_id``; all for the broadcast id."""
        if servo_id == BROADCAST_ID:
            return self.servos
        return tuple(servo for servo in self.servos if servo.servo_id == servo_id)

    def handle(self, packet: InstructionPacket, baud: int) -> Outcome:
        """Carry out one instruction that the wire carried at ``baud``.

        Malformed and unknown instructions get no answer, as from the servo.
        """
        params = packet.params
        match packet.instruction:
            case Instruction.PING:
                return Outcome(tuple(_status(servo) for servo in self._hearing(packet, baud)))
            case Instruction.READ if len(params) == 2 and packet.servo_id != BROADCAST_ID:
                return Outcome(
                    tuple(
                        _status(servo, servo.read(params[0], params[1]))
                        for servo in self._hearing(packet, baud)
                    )
                )
            case Instruction.SYNC_READ if len(params) > 2:
                return Outcome(tuple(self._sync_read(params, baud)))
            case Instruction.SYNC_WRITE if len(params) > 2:
                return self._sync_write(params, baud)
            case Instruction.WRITE if len(params) > 1:
                return self._each(packet, baud, lambda servo: servo.write(params[0], params[1:]))
            case Instruction.REG_WRITE if len(params) > 1:
                return self._each(packet, baud, lambda servo: _keep(servo, params))
            case Instruction.ACTION:
                return self._each(packet, baud, ServoFirmware.act)
            case Instruction.FACTORY_RESET:
                return self._each(packet, baud, ServoFirmware.reset)
            case _:
                return Outcome()

    def _hearing(self, packet: InstructionPacket, baud: int) -> list[ServoFirmware]:
        return [servo for servo in self.find(packet.servo_id) if servo.baud == baud]

    def _each(
        self, packet: InstructionPacket, baud: int, action: Callable[[ServoFirmware], bool]
    ) -> Outcome:
        answers = []
        changed = False
        hearing = self._hearing(packet, baud)
        for servo in hearing:
            changed |= action(servo)
            if packet.servo_id != BROADCAST_ID and servo.answers_writes:
                answers.append(ChainAnswer(_bare(packet.servo_id, servo), servo.return_delay_s))
        return Outcome(tuple(answers), bool(hearing), changed)

    def _sync_read(self, params: bytes, baud: int) -> list[ChainAnswer]:
        address, size = params[0], params[1]
        hearing: dict[int, list[ServoFirmware]] = {}
        for servo in self.servos:
            if servo.baud == baud:
                hearing.setdefault(servo.servo_id, []).append(servo)
        return [
            _status(servo, servo.read(address, size))
            for servo_id in params[2:]
            for servo in hearing.get(servo_id, ())
        ]

    def _sync_write(self, params: bytes, baud: int) -> Outcome:
        address, size = params[0], params[1]
        stride = size + 1
        changed = written = False
        if (len(params) - 2) % stride:
            return Outcome()
        for at in range(2, len(params), stride):
            for servo in self.servos:
                if servo.servo_id == params[at] and servo.baud == baud:
                    changed |= servo.write(address, params[at + 1 : at + stride])
                    written = True
        return Outcome((), written, changed)


def _status(servo: ServoFirmware, data: bytes = b"") -> ChainAnswer:
    return ChainAnswer(StatusPacket(servo.servo_id, servo.error(), data), servo.return_delay_s)


def _bare(servo_id: int, servo: ServoFirmware) -> StatusPacket:
    # A servo whose id was just changed still answers under the old one.
    return StatusPacket(servo_id, servo.error(), b"")


def _keep(servo: ServoFirmware, params: bytes) -> bool:
    servo.keep(params[0], params[1:])
    return False
