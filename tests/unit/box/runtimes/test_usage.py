"""What process groups use, measured on real processes and held against psutil."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from bridge.box.runtimes.process.usage import UsageMeter, read_sample

BURN = "import time\nwhile True: time.process_time()"
TREE = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {BURN!r}])"


@contextmanager
def leading(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group, and is gone afterwards with all of it."""
    child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    try:
        yield child
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def test_a_process_is_read_as_psutil_reads_it() -> None:
    me = psutil.Process()
    load = read_sample(me.pid)
    assert load is not None
    times = me.cpu_times()
    assert load.cpu == pytest.approx(times.user + times.system, abs=0.5)
    assert load.memory == pytest.approx(me.memory_info().rss, rel=0.1)
    assert load.started > 0


def test_a_process_that_did_nothing_is_not_read_again() -> None:
    with leading("import time; time.sleep(60)") as child:
        deadline = time.monotonic() + 20
        before, load = None, read_sample(child.pid)
        while (before is None or load is not before) and time.monotonic() < deadline:
            time.sleep(0.05)  # until it sleeps
            before, load = load, read_sample(child.pid, load)
        assert before is not None
        assert load is before
        assert load == read_sample(child.pid)


def test_a_missing_process_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    child.wait()
    assert read_sample(child.pid) is None


def test_a_group_uses_what_its_members_do_and_its_leader_does_not_count() -> None:
    meter = UsageMeter()
    with leading(TREE) as child:
        group = child.pid
        deadline = time.monotonic() + 20
        cpu = memory = 0
        while not (cpu and memory) and time.monotonic() < deadline:
            cpus, memories = meter.measure({group}, time.monotonic())
            cpu, memory = cpus[group], memories[group]
            time.sleep(0.1)
        assert cpu > 0
        [member] = psutil.Process(group).children()
        assert memory == pytest.approx(member.memory_info().rss, rel=0.2)
        assert meter.measure(set(), time.monotonic()) == ({}, {})


def test_the_cpu_of_a_process_counts_from_the_second_measurement() -> None:
    with leading(TREE) as child:
        deadline = time.monotonic() + 20
        while not psutil.Process(child.pid).children() and time.monotonic() < deadline:
            time.sleep(0.01)
        [member] = psutil.Process(child.pid).children()
        while member.cpu_times().user < 0.1 and time.monotonic() < deadline:
            time.sleep(0.01)
        cpu, memory = UsageMeter().measure({child.pid}, 100.0)
        assert cpu[child.pid] == 0
        assert memory[child.pid] > 0
