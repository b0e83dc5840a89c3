"""Faults on the wire, each over a real pseudo-terminal: no stale value, no silent loss."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import termios
import threading
import time

import pytest

from robot_io.bus import ServoBus, Telemetry
from robot_io.errors import (
    BadChecksum,
    BusError,
    BusTimeout,
    PortBusy,
    PortMissing,
    Unplugged,
)
from robot_io.packet import Instruction, StatusPacket
from robot_io.sts3215 import REGISTERS, ServoError

IDS = (1, 2, 3, 4, 5, 6)


@pytest.fixture
def bus(servos):
    with ServoBus(servos.port) as opened:
        yield opened


class Clock:
    """Real seconds, and those that a test lets pass."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


def lost(_: bytes) -> bytes:
    return b""


def corrupt(frame: bytes) -> bytes:
    return frame[:-1] + bytes((frame[-1] ^ 0xFF,))


def count(servos, instruction: Instruction) -> int:
    return sum(request.instruction == instruction for request in servos.requests)


# -- the good case -----------------------------------------------------------------------------


def test_registers_are_read_and_written_by_name(servos, bus):
    bus.write(3, "Homing_Offset", -1234)
    assert servos.get(3, "Homing_Offset") == -1234
    assert bus.read(3, "Homing_Offset") == -1234
    bus.sync_write("Goal_Position", {servo_id: 1000 + servo_id for servo_id in IDS})
    assert bus.sync_read("Goal_Position", IDS) == {i: 1000 + i for i in IDS}
    assert bus.stats.retries == 0


def test_full_telemetry_of_six_servos_is_one_request(servos, bus):
    servos.set(2, "Present_Velocity", -300)
    servos.set(2, "Present_Load", -555)
    servos.set(2, "Present_Current", -7)
    servos.set(2, "Moving", 1)
    read = bus.read_telemetry(IDS)
    assert len(servos.requests) == 1
    assert servos.requests[0].params[:2] == bytes((56, 15))
    assert read[2] == Telemetry(2, ServoError.NONE, 2002, -300, -555, 74, 30, True, -7)
    assert [read[i].position for i in IDS] == [2001, 2002, 2003, 2004, 2005, 2006]
    servos.set(2, "Present_Position", -5)
    assert bus.read_telemetry((2,))[2].position == -5


def test_a_register_may_be_given_itself(servos, bus):
    assert bus.read(1, REGISTERS["Present_Voltage"]) == 74


def test_the_port_runs_at_the_servos_own_speed(servos, bus):
    assert termios.tcgetattr(servos.slave)[4:6] == [termios.B1000000] * 2


def test_error_bits_of_the_packet_and_of_the_status_register_are_both_kept(servos, bus):
    servos.error[4] = ServoError.OVERHEAT
    servos.set(4, "Status", ServoError.OVERLOAD)
    assert bus.read_telemetry(IDS)[4].error == ServoError.OVERHEAT | ServoError.OVERLOAD
    assert bus.faults[4] == ServoError.OVERHEAT | ServoError.OVERLOAD
    assert bus.faults[1] == ServoError.NONE
    assert bus.write(4, "Torque_Enable", 0) == ServoError.OVERHEAT
    assert bus.ping(4) == ServoError.OVERHEAT


# -- late answers ------------------------------------------------------------------------------


def test_what_came_in_before_a_request_is_never_its_answer(servos, bus):
    """A whole, correct answer of the right servo and length, which nobody asked for."""
    stray = StatusPacket(1, 0, b"\x63").encode()
    for times in (1, 2):
        os.write(servos.master, stray)
        time.sleep(0.02)
        assert bus.read(1, "Present_Voltage") == 74
        assert bus.stats.flushed_bytes == times * len(stray)
    assert bus.stats.late_replies == 0


def test_half_an_answer_is_not_joined_to_the_next_one(servos):
    """Its length claims more than follows: kept, it would swallow the next answer."""
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=0) as bus:
        servos.spoil = [lambda _: b"\xff\xff\x01\xf0"]
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        assert bus.read(1, "Present_Voltage") == 74


def test_the_time_on_the_wire_is_added_to_the_reply_timeout(servos):
    """Six answers take 0.29 s at 4800 baud, far longer than a servo may take to begin."""
    with ServoBus(servos.port, 4800, reply_timeout_s=0.01, retries=0) as bus:
        servos.late_s = [0.1] * 6
        assert len(bus.read_telemetry(IDS)) == 6


def test_only_within_the_late_window_is_more_asked_for_than_needed(servos):
    clock = Clock()
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=0, clock=clock) as bus:
        servos.spoil = [lost]
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        bus.read(1, "Present_Voltage")
        clock.ahead_s = 0.5
        bus.read(1, "Present_Voltage")
        assert [request.params[1] for request in servos.requests] == [1, 2, 1]


def test_longer_reads_stay_within_the_servos_table_and_then_wait_at_rest(servos):
    """Three bytes before the table's end, only two lengths tell answers apart."""
    end = max(register.end for register in REGISTERS.values())
    with ServoBus(servos.port, reply_timeout_s=0.05, retries=0, late_window_s=0.6) as bus:
        servos.mute = {1}
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        for _ in range(3):
            with pytest.raises(BusTimeout):
                bus.read_bytes(1, end - 3, 2)
        assert [request.params[1] for request in servos.requests] == [2, 3, 2]
        assert 0.6 < time.monotonic() - began_s < 3
        assert time.process_time() - began_cpu_s < 0.3


def test_each_write_within_the_late_window_is_read_back_and_prolongs_it(servos):
    """The acknowledgement of a write that was read back may be late as well."""
    clock = Clock()
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=0, clock=clock) as bus:
        servos.spoil = [lost]
        with pytest.raises(BusTimeout, match="a write of Goal_Position"):
            bus.write(1, "Goal_Position", 1111)
        for clock.ahead_s, proved in ((0.35, 1), (0.7, 2), (2.0, 2)):
            bus.write(1, "Goal_Position", 2222)
            assert bus.stats.read_backs == proved


def test_late_reply_is_never_taken_for_the_next_read(servos):
    """80 ms late: the answer about the voltage arrives while the temperature is asked for."""
    with ServoBus(servos.port, reply_timeout_s=0.05, retries=0) as bus:
        servos.late_s = [0.08]
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        began_s = time.monotonic()
        fresh = 0
        while time.monotonic() - began_s < 0.15 or not fresh:
            with contextlib.suppress(BusTimeout):  # of a machine that is busy, not of the promise
                assert bus.read(1, "Present_Temperature") == 30
                fresh += 1
        assert bus.stats.late_replies + bus.stats.flushed_bytes > 0


def test_late_reply_that_arrives_within_the_next_wait_is_dropped_and_counted(servos):
    """The worst instant: same servo, same size, and the right answer is itself slow."""
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=0) as bus:
        servos.late_s = [0.13, 0.06]
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        assert bus.read(1, "Present_Temperature") == 30
        # Dropped while waiting, or before the request when this machine was slow.
        assert bus.stats.late_replies + bus.stats.flushed_bytes > 0


@pytest.mark.parametrize("late_s", [0.045, 0.06, 0.08, 0.12])
def test_late_position_is_never_taken_for_a_fresh_one(servos, late_s):
    """However late, and with every right answer slow: what is returned is never of before."""
    with ServoBus(servos.port, reply_timeout_s=0.04, retries=0) as bus:
        servos.late_s = [late_s] + [0.025] * 8
        fresh = 0
        for tick in range(8):
            servos.set(1, "Present_Position", 100 + tick)
            with contextlib.suppress(BusTimeout):
                assert bus.read(1, "Present_Position") == 100 + tick
                fresh += 1
        assert fresh >= 2


def test_late_sync_read_is_never_taken_for_the_next_one(servos):
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=0) as bus:
        servos.late_s = [0.13] * 6 + [0.05] * 6
        with pytest.raises(BusTimeout):
            bus.read_telemetry(IDS)
        for servo_id in IDS:
            servos.set(servo_id, "Present_Position", 3000 + servo_id)
        read = bus.read_telemetry(IDS)
        assert [read[i].position for i in IDS] == [3000 + i for i in IDS]


def test_late_acknowledgement_does_not_vouch_for_the_next_write(servos):
    """The first write's acknowledgement comes late; the second write never reaches the servo."""
    with ServoBus(servos.port, reply_timeout_s=0.04, retries=0) as bus:
        servos.late_s = [0.06]
        with pytest.raises(BusTimeout):
            bus.write(1, "Goal_Position", 1111)

        def lose(servo_id: int, address: int, data: bytes) -> None:
            servos.memory[servo_id][address : address + len(data)] = (1111).to_bytes(2, "little")

        servos.on_write = lose
        with pytest.raises(BusTimeout):
            bus.write(1, "Goal_Position", 2222)
        servos.on_write = None
        bus.write(1, "Goal_Position", 2222)
        assert servos.get(1, "Goal_Position") == 2222
        assert bus.stats.read_backs >= 2


def test_late_acknowledgement_is_not_taken_for_a_ping(servos):
    with ServoBus(servos.port, reply_timeout_s=0.04, retries=0) as bus:
        servos.late_s = [0.06]
        with pytest.raises(BusTimeout):
            bus.write(1, "Goal_Position", 1111)
        servos.mute = {1}
        with pytest.raises(BusTimeout):
            bus.ping(1)


# -- corrupt and missing answers ---------------------------------------------------------------


def test_a_ping_without_an_answer_is_asked_again(servos, bus):
    servos.spoil = [lost]
    assert bus.ping(1) == ServoError.NONE
    assert count(servos, Instruction.PING) == 2


def test_every_event_is_counted_each_time(servos):
    with ServoBus(servos.port, reply_timeout_s=0.1, retries=2, retry_budget_s=5.0) as bus:
        servos.mute = {1}
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        other = StatusPacket(2, 0, b"\x63").encode()
        servos.spoil = [lambda frame: other + other + frame]
        assert bus.read(3, "Present_Voltage") == 74
        bus.sync_write("Goal_Position", {1: 2000})
        bus.sync_write("Goal_Position", {1: 2000})
        counts = bus.stats.as_dict()
    named = ("requests", "retries", "timeouts", "late_replies", "bad_checksums", "read_backs")
    assert [counts[name] for name in named] == [6, 2, 3, 2, 0, 0]


def test_bad_checksum_is_counted_and_asked_again(servos, bus):
    servos.spoil = [None, None, corrupt]
    read = bus.read_telemetry(IDS)
    assert [read[i].position for i in IDS] == [2001, 2002, 2003, 2004, 2005, 2006]
    assert bus.stats.bad_checksums == 1
    assert bus.stats.retries == 1


def test_bad_checksum_each_time_raises_with_the_servo_named(servos, bus):
    servos.spoil = [None, None, corrupt, None, None, None] * 3
    bus.names[3] = "elbow_flex"
    with pytest.raises(BadChecksum, match=r"3 \(elbow_flex\).*corrupt") as caught:
        bus.read_telemetry(IDS)
    assert caught.value.servo_ids == (3,)
    assert bus.stats.bad_checksums == 3
    assert count(servos, Instruction.SYNC_READ) == 3


def test_corrupt_reply_is_asked_again_at_once_without_waiting_for_the_timeout(servos):
    with ServoBus(servos.port, reply_timeout_s=1.0, retry_budget_s=5.0) as bus:
        servos.spoil = [corrupt]
        began_s = time.monotonic()
        assert bus.read(1, "Present_Voltage") == 74
        assert time.monotonic() - began_s < 0.5


def test_an_answer_whose_last_byte_comes_later_is_waited_for(servos):
    def cut(frame: bytes) -> bytes:
        threading.Timer(0.03, os.write, (servos.master, frame[-1:])).start()
        return frame[:-1]

    with ServoBus(servos.port, reply_timeout_s=0.5, retries=0) as bus:
        servos.spoil = [cut]
        assert bus.read(1, "Present_Voltage") == 74


def test_mute_servo_is_named_and_nothing_partial_is_returned(servos, bus):
    servos.mute = {3, 5}
    with pytest.raises(BusTimeout) as caught:
        bus.sync_read("Present_Position", IDS)
    assert caught.value.servo_ids == (3, 5)
    assert "servo 3, 5" in str(caught.value)
    assert "did not answer a read" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)


def test_no_attempt_begins_after_the_budget(servos):
    with ServoBus(servos.port, reply_timeout_s=0.03, retries=100, retry_budget_s=0.1) as bus:
        servos.mute = {1}
        began_s = time.monotonic()
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        assert time.monotonic() - began_s < 0.5
        assert 2 <= count(servos, Instruction.READ) <= 5


def test_by_default_no_attempt_begins_when_an_eighth_of_a_second_has_passed(servos):
    with ServoBus(servos.port, reply_timeout_s=0.2) as bus:
        servos.mute = {1}
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        assert count(servos, Instruction.READ) == 1


def test_a_mute_servo_for_ever_never_exhausts_the_distinct_lengths(servos):
    with ServoBus(servos.port, reply_timeout_s=0.001, retries=0, late_window_s=0.05) as bus:
        servos.mute = {1}
        for _ in range(80):
            with pytest.raises(BusTimeout):
                bus.read_bytes(1, 69, 2)
        servos.mute = set()
        time.sleep(0.06)
        with bus.patient():  # a millisecond may be too short for a fake on a busy machine
            assert bus.read_bytes(1, 69, 2) == b"\0\0"


def test_noise_before_a_reply_is_skipped_and_counted(servos, bus):
    servos.spoil = [lambda frame: b"\x00\xfe\xff" + frame]
    assert bus.read(2, "Present_Voltage") == 74
    assert bus.stats.noise_bytes == 3


def test_reply_of_another_servo_is_not_taken(servos, bus):
    servos.spoil = [lambda _: StatusPacket(2, 0, b"\x63").encode()]
    assert bus.read(1, "Present_Voltage") == 74
    assert bus.stats.late_replies == 1


def test_a_stray_answer_does_not_cut_short_the_wait_for_the_others(servos):
    """Its bytes are not among those awaited: the others come one by one, each in its own time."""
    with ServoBus(servos.port, reply_timeout_s=0.5, retries=0) as bus:
        stray = StatusPacket(9, 0, b"\x63").encode()
        servos.spoil = [lambda frame: stray + frame]
        servos.late_s = [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
        assert len(bus.sync_read("Present_Position", IDS)) == 6


def test_waiting_for_a_mute_servo_costs_no_processor_time(servos):
    with ServoBus(servos.port, reply_timeout_s=0.3, retries=0) as bus:
        servos.mute = {1}
        before_s = time.process_time()
        with pytest.raises(BusTimeout):
            bus.read(1, "Present_Voltage")
        assert time.process_time() - before_s < 0.1


# -- the port ----------------------------------------------------------------------------------


def test_missing_port_says_what_to_do(tmp_path):
    with pytest.raises(PortMissing, match=r"no serial port .*ttyNone.*armada doctor") as caught:
        ServoBus(tmp_path / "ttyNone").open()
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_is_no_serial_port(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(BusError, match="cannot be opened as a serial port"):
        ServoBus(path).open()


def test_port_held_by_another_process_names_it_and_how_to_find_it(servos):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from robot_io.bus import ServoBus\n"
            "bus = ServoBus(sys.argv[1]); bus.open(); print('open', flush=True); time.sleep(60)",
            servos.port,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        bus = ServoBus(servos.port)
        with pytest.raises(PortBusy, match="fuser -v") as caught:
            bus.open()
        assert f"pid {holder.pid}" in str(caught.value)
        assert not bus.is_open
    finally:
        holder.kill()
        holder.wait()
    # A killed holder leaves nothing behind that would keep the port shut.
    with ServoBus(servos.port) as bus:
        assert bus.ping(1) == ServoError.NONE


def test_unplugged_port_raises_unplugged_and_can_be_opened_again(servos, tmp_path):
    link = tmp_path / "arm"
    link.symlink_to(servos.port)
    bus = ServoBus(link)
    bus.open()
    assert bus.read(1, "Present_Voltage") == 74
    servos.unplug()
    with pytest.raises(Unplugged, match="unplugged"):
        bus.read_telemetry(IDS)
    assert not bus.is_open
    with pytest.raises(Unplugged, match="not open: it was unplugged"):
        bus.sync_write("Goal_Position", {1: 2000})
    bus.close()
    with pytest.raises(PortMissing):
        bus.open()
    again = type(servos)()
    try:
        link.unlink()
        link.symlink_to(again.port)
        bus.open()
        assert bus.read(1, "Present_Voltage") == 74
        assert bus.stats.unplugs == 1
    finally:
        bus.close()
        again.unplug()


def test_unplug_during_the_wait_for_a_reply_ends_it_at_once(servos):
    with ServoBus(servos.port, reply_timeout_s=10.0) as bus:
        servos.mute = {1}
        threading.Timer(0.1, servos.unplug).start()
        began_s = time.monotonic()
        with pytest.raises(Unplugged):
            bus.read(1, "Present_Voltage")
        assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    "send",
    [
        lambda bus: bus.read(1, "Present_Voltage"),
        lambda bus: bus.sync_write("Goal_Position", {1: 2000}),
    ],
)
def test_a_port_that_takes_no_more_bytes_is_given_up(servos, bus, send):
    servos.stop()
    os.set_blocking(servos.slave, False)
    for _ in range(3):  # the kernel makes a little room again after the first time
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(servos.slave, bytes(4096))
        time.sleep(0.02)
    began_s = time.monotonic()
    with pytest.raises(Unplugged, match="takes no more bytes"):
        send(bus)
    assert 0.1 < time.monotonic() - began_s < 3


def test_a_bus_never_opened_says_so(servos):
    with pytest.raises(Unplugged, match="has not been opened"):
        ServoBus(servos.port).ping(1)


def test_leaving_the_block_closes_the_port(servos):
    with pytest.raises(ZeroDivisionError), ServoBus(servos.port) as bus:
        assert bus.is_open
        raise ZeroDivisionError
    assert not bus.is_open


def test_close_may_be_called_twice_and_leaves_no_file_open(servos):
    before = len(os.listdir("/proc/self/fd"))
    bus = ServoBus(servos.port)
    bus.open()
    bus.close()
    bus.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_do_not_mix_up_their_answers(servos, bus):
    answers: dict[int, set[int]] = {}

    def ask(servo_id: int) -> None:
        answers[servo_id] = {bus.read(servo_id, "Present_Position") for _ in range(100)}

    threads = [threading.Thread(target=ask, args=(servo_id,)) for servo_id in IDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {servo_id: {2000 + servo_id} for servo_id in IDS}
