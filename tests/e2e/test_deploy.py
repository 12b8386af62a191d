"""What is deployed is what is tested: the systemd unit runs a Box, and the wheel has it all."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import labelled
from tests.e2e.program import run, running
from tests.paths import REPOSITORY
from tests.support import PORTS, TIMING, eventually, listening, service_table

UNIT = REPOSITORY / "deploy" / "systemd" / "box-bridge.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_the_systemd_unit_runs_a_box_that_notifies_systemd_and_leaves_its_instances(
    server: EmbeddedServer, tmp_path: Path, kind: str
) -> None:
    service = unit()
    assert service["Type"] == "notify"
    address = str(tmp_path / "notify") if kind == "path" else f"@box-bridge-{os.getpid()}"
    variables = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": str(10**6 * int(service["WatchdogSec"])),
    }
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "box-bridge"
    installed = tmp_path / "etc" / "box.toml"
    installed.parent.mkdir()
    installed.write_text(
        f'[box]\nname = "box-a"\nports = "{PORTS}"\n{TIMING}\n{service_table("web")}'
    )
    at = arguments.index("-c") + 1
    assert arguments[at] == "/etc/box-bridge/box.toml"
    arguments[at] = str(installed)
    name, _, value = service["Environment"].partition("=")
    state = tmp_path / "state"
    assert value == f"/var/lib/{service['StateDirectory']}"
    env = {"NATS_URL": server.url, name: str(state), **variables}
    async with listening(address) as manager, running(*arguments, cwd=tmp_path, **env) as box:
        await manager.notified("READY=1")
        await eventually(lambda: any("Box box-a is ready" in line for line in box.err))
        await manager.notified("STATUS=ready")
        await manager.notified("WATCHDOG=1")
        assert (await run("scale", "web", 1, "--wait", "-s", server.url, cwd=tmp_path)).code == 0
        assert (state / "instances").is_dir()
        [instance] = (state / "instances").iterdir()
        pids = labelled(str(instance))
        assert pids
        for pid in pids:  # what is meant for the Box would make an instance speak for it
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert not any(f"{variable}=".encode() in environ for variable in variables)
        # KillMode=process: SIGTERM goes to the Box alone, and nothing follows it.
        assert service["KillMode"] == "process"
        assert "STOPPING=1" not in manager.lines
        box.process.send_signal(signal.SIGTERM)
        await manager.notified("STOPPING=1")
        await manager.notified("STATUS=this Box is stopping")
        assert await box.wait(within=float(service["TimeoutStopSec"])) == 0
    assert labelled(str(instance)) == pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_analyze_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/box-bridge/bin/box-bridge", "/bin/true")
    copy = tmp_path / "box-bridge.service"
    copy.write_text(text.replace("User=box-bridge", f"User={os.environ.get('USER', 'root')}"))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True
    )
    assert "box-bridge.service" not in result.stderr
    assert result.returncode == 0


def test_the_wheel_contains_the_server_configuration_and_the_type_marker(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(REPOSITORY)], check=True)
    [wheel] = tmp_path.glob("box_bridge-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"bridge/py.typed", "bridge/demo/service.py"} <= names
        packaged = archive.read("bridge/bus/nats-server.conf")
        assert not any(name.startswith(("tests/", "deploy/")) for name in names)
    assert packaged == (REPOSITORY / "deploy" / "nats" / "nats-server.conf").read_bytes()


async def test_config_check_accepts_the_example_for_containers(tmp_path: Path) -> None:
    result = await run(
        "config", "check", "-c", str(REPOSITORY / "deploy/oci/box.toml"), cwd=tmp_path
    )
    assert result.code == 0
    assert "runtime oci by podman" in result.out
    assert "service web: docker.io/library/nginx:alpine" in result.out
