"""The command line as the first process of a container."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Final

import pytest

UNSHARE: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
ORPHANS: Final = """
import os, subprocess, sys, time
from bridge.cli.init_process import become_child_of_init
if (code := become_child_of_init()) is not None:
    sys.exit(code)
assert os.getppid() == 1
def zombies():
    states = [stat(pid) for pid in pids()]
    return [state for state in states if state[0] == "Z" and state[1] == "1"]
def stat(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    except OSError:
        return ["", ""]
def pids():
    return [pid for pid in os.listdir("/proc") if pid.isdigit()]
for _ in range(20):
    assert subprocess.run(["sh", "-c", "sleep 0 & exit 5"]).returncode == 5
deadline = time.monotonic() + 30
while zombies() and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(7 if not zombies() else 8)
"""


def needs_unshare() -> None:
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"]).returncode:
        pytest.skip("no process namespace can be made here")


def test_orphans_are_reaped_and_the_exit_code_is_the_childs() -> None:
    needs_unshare()
    done = subprocess.run([*UNSHARE, sys.executable, "-c", ORPHANS], check=False, timeout=60)
    assert done.returncode == 7


def test_a_signal_reaches_the_child() -> None:
    needs_unshare()
    wait = (
        "import sys, signal, time\n"
        "from bridge.cli.init_process import become_child_of_init\n"
        "if (code := become_child_of_init()) is not None: sys.exit(code)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "import os; os.kill(1, signal.SIGTERM)\n"
        "while True: time.sleep(0.1)  # a signal may come just before a sleep"
    )
    done = subprocess.run([*UNSHARE, sys.executable, "-c", wait], check=False, timeout=60)
    assert done.returncode == 9
