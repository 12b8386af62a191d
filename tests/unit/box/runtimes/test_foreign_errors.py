"""The error boundary of the runtimes: whatever a library raises, callers get a BridgeError."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import pytest

from bridge.box.runtimes import factory, process_identity, sock_diag, sockets
from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.factory import open_runtime
from bridge.box.runtimes.foreign_errors import describe, mapped_errors
from bridge.box.runtimes.oci import container_kernel, monitor, parsing
from bridge.box.runtimes.oci import runtime as oci_runtime
from bridge.box.runtimes.oci.container import Container
from bridge.box.runtimes.oci.engines import KINDS, Engine, find_engine
from bridge.box.runtimes.oci.parsing import ContainerState
from bridge.box.runtimes.oci.runtime import OciRuntime
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.box.runtimes.process import runtime as process_runtime
from bridge.box.runtimes.process import shim, usage
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.box.runtimes.process_identity import ProcessIdentity, identify
from bridge.errors import BoxError, EngineSilent, EngineUnsuitable, InstanceError
from bridge.settings import Config
from tests.boxes import labelled
from tests.failing_call import OS_ERRORS, FailingCall
from tests.integration.test_host_checks import tiny_disk
from tests.support import FIRST_PORT, eventually

OTHERS: Final = [
    OSError("without an errno"),
    ValueError("embedded null byte"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    json.JSONDecodeError("Expecting value", "", 0),
    OverflowError("cannot convert float infinity to integer"),
    RecursionError("maximum recursion depth exceeded"),
    subprocess.SubprocessError("Exception occurred in preexec_fn"),
    subprocess.TimeoutExpired("podman", 10),
    subprocess.CalledProcessError(1, "podman"),
    psutil.NoSuchProcess(1),
    psutil.AccessDenied(1),
    psutil.ZombieProcess(1),
    psutil.TimeoutExpired(1),
    msgspec.DecodeError("Input data was truncated"),
    msgspec.ValidationError("Expected `int`, got `str`"),
]
FAULTS: Final = [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.EACCES, os.strerror(errno.EACCES)),
    *OTHERS,
]


each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
some_faults = pytest.mark.parametrize(
    "fault", [FAULTS[1], FAULTS[3], FAULTS[-1]], ids=["OSError", "ValueError", "MsgspecError"]
)


@pytest.mark.parametrize("fault", [*OS_ERRORS, *OTHERS], ids=repr)
def test_every_foreign_exception_becomes_an_instance_error_with_its_cause(fault: Exception) -> None:
    with pytest.raises(InstanceError, match=r"the step: .") as raised, mapped_errors("the step"):
        raise fault
    assert raised.value.__cause__ is fault


def test_a_reason_is_never_empty_and_names_the_file() -> None:
    assert describe(OSError(errno.ENOENT, "No such file or directory", "/x")) == (
        "No such file or directory: /x"
    )
    assert describe(ValueError()) == "ValueError"


# ── processes ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    runtime = ProcessRuntime(
        tmp_path, range(FIRST_PORT, FIRST_PORT + 100), {"PATH": "/usr/bin:/bin"}
    )
    yield runtime
    await runtime.end_all()


def spec(tmp_path: Path, *command: str, **changes: Any) -> Spec:
    settings: dict[str, Any] = {
        "env": {},
        "vcpus": None,
        "memory_mib": None,
        "image": "nginx",
        **changes,
    }
    return Spec(
        instance_id="web-a",
        service="web",
        command=list(command or ("sleep", "60")),
        cwd=str(tmp_path),
        port=0,
        directory=tmp_path / "web-a",
        **settings,
    )


async def not_recorded(identity: ProcessIdentity, port: int) -> None:
    """In place of a journal."""


async def maps(call: Awaitable[object], failing: FailingCall) -> None:
    with pytest.raises(InstanceError) as raised:
        await call
    assert failing.count, "the fault did not fire"
    assert raised.value.__cause__ is failing.fault


@some_faults
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (shim, "spawn"),
        (process_runtime, "identify"),
        (os, "sched_setaffinity"),
        (os, "pidfd_open"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_start_that_fails_anywhere_is_an_instance_error_and_leaves_no_process(
    processes: ProcessRuntime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    fault: Exception,
) -> None:
    process = await processes.create(spec(tmp_path, vcpus=1, memory_mib=512), print)
    failing = FailingCall(fault)
    monkeypatch.setattr(module, name, failing)
    await maps(processes.start(process, not_recorded), failing)
    assert await processes.stop(process, 0) == Exit()
    await eventually(lambda: not labelled(str(process.spec.directory)))


async def test_a_nul_byte_in_a_variable_fails_its_instance_alone(
    processes: ProcessRuntime, tmp_path: Path
) -> None:
    process = await processes.create(spec(tmp_path, env={"A": "a\0b"}), print)
    with pytest.raises(InstanceError, match=r"sleep: .*cannot contain a NUL"):
        await processes.start(process, not_recorded)


async def test_what_the_recorder_raises_is_not_taken_for_a_fault_of_the_instance(
    processes: ProcessRuntime, tmp_path: Path
) -> None:
    process = await processes.create(spec(tmp_path), print)
    with pytest.raises(ValueError, match="a mistake of the caller"):
        await processes.start(process, FailingCall(ValueError("a mistake of the caller")))
    assert (await processes.stop(process, 5)).ran is False


@some_faults
async def test_the_other_calls_of_the_process_runtime_raise_instance_errors(
    processes: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    process = await processes.create(spec(tmp_path), print)
    await processes.start(process, not_recorded)
    successor = ProcessRuntime(tmp_path, range(FIRST_PORT, FIRST_PORT + 100), {})
    calls: list[tuple[Any, str, Callable[[], Awaitable[object]]]] = [
        (Path, "mkdir", lambda: processes.create(spec(tmp_path), print)),
        (os, "pidfd_open", lambda: successor.adopt(process.spec, process.identity, process.port)),
        (psutil, "pids", processes.list_living),
        (psutil, "pids", processes.sweep),
        (usage, "pids", lambda: processes.usage([process])),
        (socket, "socket", lambda: processes.listens(process)),
    ]
    for module, name, call in calls:
        with monkeypatch.context() as patch:
            failing = FailingCall(fault)
            patch.setattr(module, name, failing)
            await maps(call(), failing)


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (b"3\n", Exit(code=3)),
        (b"143\n", Exit(signal=15)),
        (b"\xff\n", Exit(code=None)),
        ("²\n".encode(), Exit(code=None)),
        (b"9" * 5000 + b"\n", Exit(code=None)),
        (b"", Exit(code=None)),
    ],
    ids=["a code", "a signal", "not UTF-8", "not ASCII", "5,000 digits", "nothing"],
)
def test_an_instance_may_write_anything_where_its_exit_code_belongs(
    tmp_path: Path, content: bytes, end: Exit
) -> None:
    (tmp_path / "exit").write_bytes(content)
    assert shim.read_exit(tmp_path, None, killed=False) == end


@pytest.mark.parametrize("content", [b"0\n", b"3\n", b"never\n", b""])
def test_what_the_kernel_reports_counts_more_than_the_exit_file(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "exit").write_bytes(content)
    assert shim.read_exit(tmp_path, 7, killed=False) == Exit(code=7)
    assert shim.read_exit(tmp_path, 137, killed=False) == Exit(signal=9)
    assert shim.read_exit(tmp_path, -9, killed=False, started=True) == Exit(signal=9)


async def test_an_instance_has_ended_although_its_group_cannot_be_inspected(
    processes: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await processes.create(spec(tmp_path), print)
    await processes.start(process, not_recorded)
    failing = FailingCall(OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(process_runtime, "has_others", failing)
    assert await processes.stop(process, 0.5) == Exit(signal=15)
    assert failing.count, "the fault did not fire"


# ── containers ───────────────────────────────────────────────────────────────────────────


def oci(tmp_path: Path, script: str = "exit 0") -> OciRuntime:
    """A runtime whose engine is `script`."""
    program = tmp_path / "podman"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    engine = Engine(kind=KINDS["podman"], path=str(program), version="4.3.1")
    calls = EngineCalls(engine, {"PATH": "/usr/bin:/bin"}, 10.0)
    return OciRuntime(calls, "id", secrets=tmp_path / "secrets", environ={})


@each_fault
async def test_an_engine_that_cannot_be_run_is_silent_and_a_call_that_cannot_be_made_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    failing = FailingCall(fault)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    with pytest.raises(InstanceError) as raised:
        await oci(tmp_path).list_living()
    assert isinstance(raised.value, EngineSilent) == isinstance(fault, OSError)
    assert raised.value.__cause__ is fault


async def test_an_engine_that_is_too_slow_is_silent(tmp_path: Path) -> None:
    engine = oci(tmp_path, "sleep 60")._calls
    with pytest.raises(EngineSilent, match=r"no answer within 0\.1 s") as raised:
        await engine.call(["ps"], timeout=0.1)
    assert isinstance(raised.value.__cause__, TimeoutError)


@some_faults
async def test_the_calls_of_the_oci_runtime_raise_instance_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    runtime = oci(tmp_path, "echo []")
    calls: list[tuple[Any, str, Callable[[], Awaitable[object]]]] = [
        (Path, "mkdir", lambda: runtime.create(spec(tmp_path), print)),
        (Path, "write_text", lambda: runtime.create(spec(tmp_path), print)),
        (oci_runtime, "_write_secret", lambda: runtime.create(spec(tmp_path), print)),
        (Path, "unlink", lambda: runtime.create(spec(tmp_path, image="unlink"), print)),
        (oci_runtime, "_clear", runtime.list_living),
        (parsing, "parse_list", runtime.list_living),
        (parsing, "parse_inspect", lambda: runtime.adopt(spec(tmp_path), None, 0)),
        (parsing, "parse_stats", runtime._monitor._sample),
        (oci_runtime, "_listens", lambda: runtime.listens(Container(spec(tmp_path)))),
    ]
    for module, name, call in calls:
        with monkeypatch.context() as patch:
            failing = FailingCall(fault)
            patch.setattr(module, name, failing)
            await maps(call(), failing)


async def test_a_full_disk_fails_the_start_of_a_container_and_keeps_no_part_of_its_secrets(
    tmp_path: Path,
) -> None:
    with tiny_disk(tmp_path / "small") as disk:
        runtime = oci(disk, "echo []")
        (disk / "filler").write_bytes(b"\0" * 200 * 1024)
        await runtime.create(spec(tmp_path), print)
        order = spec(tmp_path, env={"SECRET": "s3cret" * 20_000})
        with pytest.raises(InstanceError, match=r"environment file.*No space left"):
            await runtime.create(order, print)
        assert list((disk / "secrets").iterdir()) == []


def test_connections_inside_a_container_that_cannot_be_read_are_an_instance_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = oci(tmp_path)
    container = runtime._containers["web-a"] = Container(spec(tmp_path))
    container.identity = identify(os.getpid())
    monkeypatch.setattr(container_kernel, "has_own_network", lambda _: True)
    for fault in FAULTS:
        monkeypatch.setattr(container_kernel, "connections", FailingCall(fault))
        with pytest.raises(InstanceError):
            runtime.requests_inside(frozenset())


@pytest.mark.parametrize(
    "output",
    [
        b"\xff",
        b"[" * 100_000,
        b'[{"Name": "web-a", "CPUPerc": "1%", "MemUsage": "1.2.3MB / 2GB"}]',
        b'[{"Name": "web-a", "CPUPerc": "1%", "MemUsage": "' + b"9" * 400 + b'GB / 2GB"}]',
        b'[{"Name": "web-a", "cpu_time": "1.2.3s"}]',
        b'[{"Name": 7, "State": {"Pid": "x"}}]',
        b'{"Name": "web-a"}\n{',
    ],
    ids=range(7),
)
async def test_output_of_any_shape_means_that_the_engine_does_not_answer(
    tmp_path: Path, output: bytes
) -> None:
    (tmp_path / "output").write_bytes(output)
    observer = oci(tmp_path, f"cat {tmp_path}/output")._monitor
    for call in (observer.list_containers, lambda: observer.inspect(["web-a"]), observer._sample):
        try:
            await call()
        except EngineSilent as exc:
            assert "its answer cannot be read" in str(exc)  # noqa: PT017
    with pytest.raises(EngineSilent):
        await observer.inspect(["web-a"])


async def test_a_container_whose_process_cannot_be_watched_is_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingCall(OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(os, "pidfd_open", failing)
    monkeypatch.setattr(Path, "exists", failing)  # of the file that counts out-of-memory kills
    suspected: list[bool] = []
    container = Container(spec(tmp_path))
    state = ContainerState(name="web-a", started=True, running=True, pid=os.getpid())
    assert container.track(state, lambda: suspected.append(True)) == identify(os.getpid())
    assert suspected == [True]
    assert failing.count == 2


async def test_the_monitor_goes_on_after_any_failure_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_RETRY", 0.01)
    monkeypatch.setattr(monitor, "_LIST_EVERY", 0.01)
    runtime = oci(tmp_path, "echo []")
    failing = FailingCall(OverflowError("cannot convert float infinity to integer"))
    async with asyncio.TaskGroup() as tasks:
        with monkeypatch.context() as patch:
            patch.setattr(parsing, "parse_list", failing)
            working = tasks.create_task(runtime.run())
            await eventually(lambda: failing.count > 2)
            assert "its answer cannot be read" in runtime.problem
        await eventually(lambda: not runtime.problem)
        working.cancel()


@each_fault
def test_an_engine_whose_version_cannot_be_read_is_unsuitable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    (tmp_path / "podman").touch(mode=0o755)
    monkeypatch.setattr(subprocess, "run", FailingCall(fault))
    with pytest.raises(EngineUnsuitable) as raised:
        find_engine(str(tmp_path / "podman"), environ={})
    assert raised.value.__cause__ is fault


# ── the host ─────────────────────────────────────────────────────────────────────────────


@each_fault
async def test_a_runtime_that_cannot_be_opened_is_an_instance_error(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    failing = FailingCall(fault)
    monkeypatch.setattr(factory, "ProcessRuntime", failing)
    await maps(open_runtime(Config(), "id"), failing)


@each_fault
def test_connections_that_cannot_be_read_are_an_instance_error(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(sock_diag, "established", FailingCall(PermissionError("a sandbox")))
    monkeypatch.setattr(sockets, "read_tables", FailingCall(fault))
    with pytest.raises(InstanceError) as raised:
        sockets.connections()
    assert raised.value.__cause__ is fault


def test_a_port_is_only_free_if_that_could_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = FailingCall(OSError(errno.EAFNOSUPPORT, "no IPv6 here"))
    monkeypatch.setattr(socket, "socket", lacking)
    assert sockets.is_free(FIRST_PORT)
    assert lacking.count == 2
    monkeypatch.setattr(socket, "socket", FailingCall(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(InstanceError, match="cannot be checked: Too many open files"):
        sockets.is_free(FIRST_PORT)


@pytest.mark.parametrize("size", [1, 15, 17, 60])
def test_an_answer_of_the_kernel_that_is_cut_off_is_an_os_error(size: int) -> None:
    whole = sock_diag._HEADER.pack(88, 20, 0, 0, 0) + bytes(72)
    assert [len(body) for _, body in sock_diag.split_messages(whole)] == [72]
    with pytest.raises(OSError, match="Protocol error"):
        list(sock_diag.split_messages(whole[:size]))
    refused = sock_diag._HEADER.pack(20, 2, 0, 0, 0) + sock_diag._ERRNO.pack(-errno.EPERM)
    with pytest.raises(PermissionError):
        list(sock_diag.split_messages(refused))


def test_a_host_without_a_boot_id_is_a_box_error(monkeypatch: pytest.MonkeyPatch) -> None:
    process_identity.boot_id.cache_clear()
    monkeypatch.setattr(Path, "read_text", FailingCall(PermissionError(13, "Permission denied")))
    with pytest.raises(BoxError, match="mount /proc"):
        process_identity.boot_id()
