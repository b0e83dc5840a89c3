"""What the daisy chain answers, and when it keeps still."""

from __future__ import annotations

from robot_io import packet
from robot_io.packet import BROADCAST_ID, Instruction, InstructionPacket, PacketParser
from robot_io.sts3215 import BAUD_RATES, REGISTERS
from robot_io.twin.chain import Chain, Outcome
from robot_io.twin.firmware import Measured, ServoFirmware
from robot_io.twin.shared import Servo

MBAUD = 1_000_000


def make_chain() -> Chain:
    row = [0.0] * len(Servo)
    row[Servo.VOLTAGE_V] = 12.0
    return Chain({i: ServoFirmware(i, lambda: Measured(100.0, row)) for i in range(1, 7)})


def ask(chain: Chain, frame: bytes, baud: int = MBAUD) -> Outcome:
    (instruction,) = PacketParser(InstructionPacket).feed(frame)
    return chain.handle(instruction, baud)


def ids(outcome: Outcome) -> list[int]:
    return [answer.packet.servo_id for answer in outcome.answers]


def read(chain: Chain, servo_id: int, name: str) -> int:
    register = REGISTERS[name]
    (answer,) = ask(chain, packet.encode_read(servo_id, register.address, register.size)).answers
    return register.decode(answer.packet.params)


def test_only_the_servo_that_is_asked_answers() -> None:
    assert ids(ask(make_chain(), packet.encode_ping(4))) == [4]


def test_nobody_answers_for_a_servo_that_is_not_there() -> None:
    assert ask(make_chain(), packet.encode_ping(9)).answers == ()


def test_a_broadcast_ping_is_answered_by_all() -> None:
    assert ids(ask(make_chain(), packet.encode_ping(BROADCAST_ID))) == [1, 2, 3, 4, 5, 6]


def test_a_sync_read_is_answered_in_the_order_of_the_request() -> None:
    outcome = ask(make_chain(), packet.encode_sync_read(56, 15, [5, 1, 9, 3]))
    assert ids(outcome) == [5, 1, 3]
    assert all(len(answer.packet.params) == 15 for answer in outcome.answers)


def test_a_sync_write_reaches_all_and_nobody_answers() -> None:
    chain = make_chain()
    register = REGISTERS["Goal_Position"]
    frame = packet.encode_sync_write(register.address, {2: b"\x10\x00", 6: b"\x20\x00"})
    outcome = ask(chain, frame)
    assert outcome.answers == ()
    assert outcome.written
    assert read(chain, 2, "Goal_Position") == 16
    assert read(chain, 6, "Goal_Position") == 32


def test_a_broadcast_write_is_carried_out_in_silence() -> None:
    chain = make_chain()
    outcome = ask(chain, packet.encode_write(BROADCAST_ID, 41, b"\x07"))
    assert outcome.answers == ()
    assert [read(chain, i, "Acceleration") for i in range(1, 7)] == [7] * 6


def test_reg_writes_take_effect_together_at_the_action() -> None:
    chain = make_chain()
    for servo_id in (1, 2):
        assert ids(
            ask(chain, packet.encode_frame(servo_id, Instruction.REG_WRITE, b"\x29\x09"))
        ) == [servo_id]
        assert read(chain, servo_id, "Acceleration") == 0
    assert ask(chain, packet.encode_frame(BROADCAST_ID, Instruction.ACTION)).answers == ()
    assert [read(chain, i, "Acceleration") for i in (1, 2, 3)] == [9, 9, 0]


def test_status_level_0_answers_reads_and_pings_alone() -> None:
    chain = make_chain()
    ask(chain, packet.encode_write(1, REGISTERS["Response_Status_Level"].address, b"\0"))
    assert ask(chain, packet.encode_write(1, 41, b"\x07")).answers == ()
    assert read(chain, 1, "Acceleration") == 7
    assert ids(ask(chain, packet.encode_ping(1))) == [1]


def test_a_servo_hears_its_own_baud_rate_alone() -> None:
    chain = make_chain()
    assert ask(chain, packet.encode_ping(1), 115_200).answers == ()
    code = BAUD_RATES[115_200]
    ask(chain, packet.encode_write(1, REGISTERS["Baud_Rate"].address, bytes([code])))
    assert ask(chain, packet.encode_ping(1)).answers == ()
    assert ids(ask(chain, packet.encode_ping(1), 115_200)) == [1]
    assert ids(ask(chain, packet.encode_sync_read(56, 2, [1, 2]))) == [2]


def test_a_servo_with_a_new_id_answers_the_change_under_the_old_one() -> None:
    chain = make_chain()
    assert ids(ask(chain, packet.encode_write(6, REGISTERS["ID"].address, b"\x0b"))) == [6]
    assert ids(ask(chain, packet.encode_ping(11))) == [11]
    assert ask(chain, packet.encode_ping(6)).answers == ()


def test_the_return_delay_is_the_servos_own() -> None:
    chain = make_chain()
    assert ask(chain, packet.encode_ping(1)).answers[0].delay_s == 500e-6
    ask(chain, packet.encode_write(1, REGISTERS["Return_Delay_Time"].address, b"\0"))
    assert ask(chain, packet.encode_ping(1)).answers[0].delay_s == 0.0


def test_malformed_and_unknown_instructions_are_met_with_silence() -> None:
    chain = make_chain()
    for instruction, params in (
        (2, b""),
        (2, b"\x38"),
        (3, b"\x29"),
        (0x83, b"\x2a\x02\x01"),
        (99, b""),
    ):
        outcome = chain.handle(InstructionPacket(1, instruction, params), MBAUD)
        assert outcome.answers == ()
        assert not outcome.written
