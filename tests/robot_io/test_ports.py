"""Names that stay, and who holds a port."""

from __future__ import annotations

import os
import subprocess
import sys

from robot_io.ports import fingerprint, holders_of, is_pseudo_terminal


def test_fingerprint_tells_adapters_apart_and_is_empty_where_it_cannot():
    one = fingerprint(0x1A86, 0x55D3, "58FA0826")
    assert len(one) == 12
    assert one == fingerprint(0x1A86, 0x55D3, "58FA0826")
    assert one != fingerprint(0x1A86, 0x55D3, "58FA0827")
    assert fingerprint(0x1A86, 0x7523, None) == ""
    assert fingerprint(None, None, "x") == ""


def test_the_process_that_holds_a_port_is_found_and_we_ourselves_are_not_listed():
    master, slave = os.openpty()
    port = os.ttyname(slave)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; open(sys.argv[1]); f = open(sys.argv[1]); "
            "print('open', flush=True); sys.stdin.read()",
            port,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert [pid for pid, _ in holders_of(port)] == [holder.pid]
        assert is_pseudo_terminal(port)
        assert not is_pseudo_terminal("/dev/ttyACM0")
    finally:
        holder.communicate()
        os.close(master)
        os.close(slave)
