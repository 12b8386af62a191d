"""The program that becomes an instance's command runs from bytecode only while that is current."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path

from bridge.box.runtimes.process.shim import is_current


def test_bytecode_of_an_older_source_is_not_run(tmp_path: Path) -> None:
    source, bytecode = tmp_path / "program.py", tmp_path / "program.pyc"
    assert not is_current(bytecode, source)
    source.write_text("print(1)")
    py_compile.compile(
        str(source), str(bytecode), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP
    )
    assert is_current(bytecode, source)
    os.utime(source, (1, 1))
    assert not is_current(bytecode, source)
    bytecode.write_bytes(b"")
    assert not is_current(bytecode, source)
