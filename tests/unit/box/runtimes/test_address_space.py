"""A failure that the limit of the address space may have caused says so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bridge.box.runtimes.base import Exit
from bridge.box.runtimes.process.address_space import explain


@pytest.mark.parametrize(
    "line",
    [
        "RangeError: WebAssembly.instantiate(): Out of memory: Cannot allocate Wasm memory",
        "fatal error: failed to reserve page summary memory",
        "Could not reserve enough space for 4194304KB object heap",
        "MemoryError",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "mmap: ENOMEM",
    ],
)
def test_a_log_that_speaks_of_memory_is_explained(tmp_path: Path, line: str) -> None:
    (tmp_path / "stderr.log").write_text(f"{line}\n    at main\n")
    said = explain(512, tmp_path, Exit(code=1))
    assert said.startswith("memory_mib = 512 limits the address space")
    assert explain(None, tmp_path, Exit(code=1)) == ""


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP, signal.SIGILL])
def test_a_signal_by_its_own_check_is_explained(tmp_path: Path, number: int) -> None:
    assert explain(512, tmp_path, Exit(signal=number))


def test_any_other_failure_is_not(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text("no such table: users\n")
    assert explain(512, tmp_path, Exit(code=1)) == ""
    assert explain(512, tmp_path, Exit(signal=signal.SIGTERM)) == ""
    assert explain(512, tmp_path, None) == ""
