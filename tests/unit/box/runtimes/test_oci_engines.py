"""Container engines: which one a host has, its command lines, and its output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.fleet.host_record import host_record, offers
from bridge.box.runtimes.oci import commands, parsing
from bridge.box.runtimes.oci.engines import KINDS, Engine, find_engine
from bridge.box.runtimes.oci.parsing import ContainerSample, ContainerState
from bridge.box.scheduler.placement import run_blocker
from bridge.box.state.runtime_limits import config_blocker
from bridge.errors import EngineUnsuitable
from bridge.protocol import ScaleConfig
from bridge.settings import BoxConfig, Config, ServiceConfig
from tests.paths import TESTS

ORDER = commands.ContainerSpec(
    name="web-abc",
    image="nginx:alpine",
    entrypoint=["/bin/server", "-x"],
    command=["--listen", "0.0.0.0:{port}"],
    ports=["0:80", "8443:443"],
    vcpus=2,
    memory_mib=512,
    labels=commands.labels("4f1d", "web-abc", "web", 7),
    env_file="/data/env",
    address="127.0.0.1",
)
LABELS = [
    *("--label", "box-bridge.host-id=4f1d"),
    *("--label", "box-bridge.service=web"),
    *("--label", "box-bridge.slot=7"),
    *("--label", "box-bridge.instance=web-abc"),
]


# ── which engine ─────────────────────────────────────────────────────────────────────────


def program(directory: Path, text: str, name: str = "engine") -> str:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("output", "kind", "version"),
    [
        ("podman version 4.3.1", "podman", "4.3.1"),
        ("podman version 5.4.0-dev", "podman", "5.4.0-dev"),
        ("Docker version 20.10.24+dfsg1, build 297e128", "docker", "20.10.24+dfsg1"),
        ("nerdctl version 1.7.7", "nerdctl", "1.7.7"),
        ("a3s-box 3.2.0", "a3s-box", "3.2.0"),
    ],
)
def test_an_engine_is_identified_by_its_version_output(
    tmp_path: Path, output: str, kind: str, version: str
) -> None:
    engine = find_engine(program(tmp_path, f"echo '{output}'"), environ={})
    assert (engine.kind.name, engine.version) == (kind, version)
    assert engine.name == f"{kind} {version}"


def test_an_engine_is_searched_on_the_given_path(tmp_path: Path) -> None:
    file = program(tmp_path, "echo podman version 4.3.1", name="podman")
    assert find_engine("podman", environ={"PATH": str(tmp_path)}).path == file
    with pytest.raises(EngineUnsuitable, match="apt-get install podman"):
        find_engine("podman", environ={"PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo docker version 19.3", "install 20.10 or later"),
        ("echo hello", "must be one of podman, docker, nerdctl, a3s-box"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_an_unsuitable_engine_is_reported_with_the_fix(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(EngineUnsuitable, match=expected):
        find_engine(program(tmp_path, text), environ={"PATH": "/usr/bin:/bin"})


def test_only_the_engine_that_has_an_isolation_accepts_it(tmp_path: Path) -> None:
    path = program(tmp_path, "echo a3s-box 3.2.0")
    assert find_engine(path, isolation="sandbox", environ={}).kind.name == "a3s-box"
    path = program(tmp_path, "echo podman version 4.3.1")
    with pytest.raises(EngineUnsuitable, match=r"podman has no isolation.*leave it out"):
        find_engine(path, isolation="sandbox", environ={})


# ── command lines ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["podman", "docker", "nerdctl"])
def test_podman_docker_and_nerdctl_create_a_container(kind: str) -> None:
    assert commands.create(KINDS[kind], ORDER) == [
        *("create", "--name", "web-abc", *LABELS),
        *("-p", "127.0.0.1::80", "-p", "127.0.0.1:8443:443"),
        *("--cpus", "2", "--memory", "512m", "--memory-swap", "512m"),
        *("--env-file", "/data/env", "--entrypoint", "/bin/server", "nginx:alpine"),
        *("-x", "--listen", "0.0.0.0:80"),
    ]


def test_a3s_box_runs_one_as_its_documentation_says() -> None:
    order = replace(ORDER, isolation="sandbox")
    assert commands.create(KINDS["a3s-box"], order) == [
        *("run", "-d", "--name", "web-abc", *LABELS),
        *("-p", "0:80", "-p", "8443:443", "--cpus", "2", "--memory", "512m"),
        *("--isolation", "sandbox", "--env-file", "/data/env"),
        *("--entrypoint", "/bin/server", "nginx:alpine", "--", "-x", "--listen", "0.0.0.0:80"),
    ]
    microvm = commands.create(KINDS["a3s-box"], ORDER)
    assert "--isolation" not in microvm  # left out for a MicroVM
    assert commands.list_containers(KINDS["a3s-box"], "4f1d") == [
        *("ps", "-a", "--filter", "label=box-bridge.host-id=4f1d", "--format", "json"),
    ]
    assert commands.stats(KINDS["a3s-box"]) == ["stats", "--no-stream"]
    assert commands.remove(KINDS["a3s-box"], ["web-abc"]) == ["rm", "-f", "web-abc"]


def test_settings_that_are_empty_are_left_to_the_image_and_the_engine() -> None:
    bare = replace(
        ORDER, entrypoint=[], command=[], ports=[], vcpus=None, memory_mib=None, address=""
    )
    assert commands.create(KINDS["docker"], bare) == [
        *("create", "--name", "web-abc", *LABELS, "-p", "8080"),
        *("--env-file", "/data/env", "nginx:alpine"),
    ]


def test_ports_are_published_at_an_address_of_either_kind() -> None:
    six = commands.create(KINDS["podman"], replace(ORDER, address="::1"))
    assert ("[::1]::80" in six, "[::1]:8443:443" in six) == (True, True)
    everywhere = commands.create(KINDS["podman"], replace(ORDER, address=""))
    assert ("80" in everywhere, "8443:443" in everywhere) == (True, True)


def test_the_grace_is_rounded_up_to_whole_seconds() -> None:
    assert commands.stop("web-abc", 0.3) == ["stop", "-t", "1", "web-abc"]
    assert commands.stop("web-abc", 0) == ["stop", "-t", "0", "web-abc"]
    assert commands.stop("web-abc", 10.0) == ["stop", "-t", "10", "web-abc"]


def test_an_environment_file_has_a_line_a_variable() -> None:
    assert commands.env_file({"A": " b=c ", "D": ""}) == b"A= b=c \nD=\n"


def test_an_environment_file_has_every_value_byte_for_byte() -> None:
    values = [b"a=b=c", b"\" '$X\\n`# ", b"\xff\xfe", "é".encode(), b"\t", b"x" * 32_000]
    env = {f"V{number}": os.fsdecode(value) for number, value in enumerate(values)}
    wanted = b"".join(b"V%d=%s\n" % pair for pair in enumerate(values))
    assert commands.env_file(env) == wanted


def test_podman_bounds_the_log_of_a_container_and_others_keep_their_configuration() -> None:
    bounded = replace(ORDER, log_bytes=1 << 20)
    podman = commands.create(KINDS["podman"], bounded)
    assert podman[podman.index("--log-opt") + 1] == "max-size=1048576b"
    for kind in ("docker", "nerdctl", "a3s-box"):
        assert "--log-opt" not in commands.create(KINDS[kind], bounded)


# ── output ───────────────────────────────────────────────────────────────────────────────


def test_inspect_of_docker_and_podman() -> None:
    data = b"""[{"Id": "1", "Name": "/web-abc", "State": {"Status": "running", "Running": true,
        "Pid": 4711, "ExitCode": 0, "OOMKilled": false, "Error": ""},
        "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "41213"}],
        "53/udp": [{"HostIp": "", "HostPort": "53"}], "443/tcp": null}}},
        {"Name": "web-def", "State": {"Status": "exited", "Running": false, "Pid": 0,
        "ExitCode": 137, "OOMKilled": true}, "NetworkSettings": {"Ports": {}}},
        {"Name": "web-new", "State": {"Status": "created", "Running": false, "ExitCode": 0}}]"""
    states = parsing.parse_inspect(data)
    assert states["web-abc"] == ContainerState(
        name="web-abc", started=True, running=True, pid=4711, code=0, ports={80: 41213}
    )
    assert (states["web-def"].code, states["web-def"].oom) == (137, True)
    assert (states["web-new"].started, states["web-new"].running) == (False, False)
    assert parsing.parse_inspect(b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b'[{"Names": ["web-abc"], "State": "running"}, {"Names": ["web-def"], "State": "exited"}]',
        b'{"Names":"web-abc","State":"running"}\n{"Names":"web-def","State":"exited"}\n',
        b'{"Names":"web-abc","Status":"Up 2 minutes"}\n{"Names":"web-def","Status":"Exited (1)"}',
    ],
    ids=["podman", "docker", "nerdctl"],
)
def test_ps_of_podman_docker_and_nerdctl(data: bytes) -> None:
    assert parsing.parse_list(data) == {"web-abc": True, "web-def": False}


def test_an_empty_list_is_no_container() -> None:
    assert parsing.parse_list(b"") == parsing.parse_list(b"[]\n") == {}


@pytest.mark.parametrize("data", [b"{", b"[1]", b'[{"State": "running"}]', b"usage: ps"])
def test_malformed_output_is_not_an_empty_list(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        parsing.parse_list(data)


def test_stats_of_podman_and_docker() -> None:
    podman = (
        b'[{"name": "web-abc", "cpu_time": "1m2.5s", "cpu_percent": "18.90%", '
        b'"mem_usage": "512kB / 25.28GB"}]'
    )
    assert parsing.parse_stats(podman) == {
        "web-abc": ContainerSample(cpu_percent=18.9, cpu_seconds=62.5, memory_bytes=512_000)
    }
    docker = b'{"Name":"web-abc","CPUPerc":"0.07%","MemUsage":"1.5MiB / 2GiB"}\n'
    assert parsing.parse_stats(docker) == {
        "web-abc": ContainerSample(cpu_percent=0.07, cpu_seconds=None, memory_bytes=1_572_864)
    }
    ended = b'{"Name":"web-abc","CPUPerc":"--","MemUsage":"-- / --"}'
    assert parsing.parse_stats(ended)["web-abc"].memory_bytes == 0


def test_a_share_of_the_processor_is_that_of_the_time_between_two_samples() -> None:
    def sample(seconds: float) -> ContainerSample:
        return ContainerSample(cpu_percent=99.0, cpu_seconds=seconds, memory_bytes=1)

    assert parsing.compute_usage((10.0, sample(1.0)), (12.0, sample(1.5))).cpu_percent == 25.0
    assert parsing.compute_usage(None, (12.0, sample(1.5))).cpu_percent == 0.0
    bare = ContainerSample(cpu_percent=7.0, cpu_seconds=None, memory_bytes=1)
    assert parsing.compute_usage(None, (12.0, bare)).cpu_percent == 7.0


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ('time="…" level=warning msg="x"\nError: no such image\n', "no such image"),
        ("Error response from daemon: No such container: x", "No such container: x"),
        ("something else", "something else"),
        ("", "the engine gave no reason"),
    ],
)
def test_the_error_line_is_the_one_with_the_reason(stderr: str, expected: str) -> None:
    assert parsing.error_line(stderr) == expected


@pytest.mark.parametrize(
    ("stderr", "missing"),
    [
        ('Error: inspecting object: no such object: "x"', True),
        ("Error: No such object: x", True),
        ("Error response from daemon: No such container: x", True),
        ('Error: no container with name or ID "x" states: no such container', True),
        ("No such container or image: x", True),
        ("podman: not states", False),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", False),
        ("open /var/lib/containers: no such file or directory", False),
    ],
)
def test_a_missing_container_is_not_confused_with_a_failing_engine(
    stderr: str, missing: bool
) -> None:
    assert parsing.is_missing(stderr) == missing


# ── a3s-box, from a transcript that was written by hand ──────────────────────────────────


@pytest.fixture(scope="module")
def a3s_box() -> dict[str, bytes]:
    """What each call prints."""
    text = (TESTS / "transcripts" / "a3s-box.txt").read_text()
    calls = (part.partition("\n") for part in text.split("\n$ ")[1:])
    return {call: answer.encode() for call, _, answer in calls}


def test_the_documented_list_of_a3s_box(a3s_box: dict[str, bytes]) -> None:
    call = " ".join(["a3s-box", *commands.list_containers(KINDS["a3s-box"], "4f1d")])
    assert parsing.parse_list(a3s_box[call]) == {"web-abc": True, "web-def": False}


def test_the_documented_inspect_of_a3s_box(a3s_box: dict[str, bytes]) -> None:
    def state(name: str) -> ContainerState:
        call = " ".join(["a3s-box", *commands.inspect([name])])
        return parsing.parse_inspect(a3s_box[call])[name]

    assert state("web-abc") == ContainerState(
        name="web-abc", started=True, running=True, pid=4711, ports={80: 41213}
    )
    assert state("web-def") == ContainerState(name="web-def", started=True, running=False, code=137)
    assert state("web-new") == ContainerState(name="web-new", started=False, running=False)


def test_the_documented_stats_of_a3s_box(a3s_box: dict[str, bytes]) -> None:
    call = " ".join(["a3s-box", *commands.stats(KINDS["a3s-box"])])
    assert parsing.parse_stats(a3s_box[call]) == {
        "web-abc": ContainerSample(cpu_percent=12.5, cpu_seconds=None, memory_bytes=96_500_000)
    }


# ── missing features ─────────────────────────────────────────────────────────────────────


def lacking(kind: str, **lacks: str) -> Engine:
    return Engine(kind=KINDS[kind], path="/x", version="1", lacks=lacks)


def test_what_an_engine_lacks_is_refused_when_a_request_needs_it() -> None:
    lacks = lacking("podman", vcpus="no cgroups", memory_mib="no cgroups").lacks

    def why(config: ScaleConfig) -> str | None:
        return config_blocker("oci", config, cpus=4, lacks=lacks)

    assert why(ScaleConfig(env={"A": "b"})) is None
    assert why(ScaleConfig(vcpus=1)) == "vcpus cannot be honoured: no cgroups"
    assert why(ScaleConfig(memory_mib=64)) == "memory_mib cannot be honoured: no cgroups"


def test_blanks_around_a_value_are_refused_where_the_engine_drops_them(tmp_path: Path) -> None:
    a3s_box = find_engine(program(tmp_path, "echo a3s-box 3.2.0"), environ={}).lacks
    padded = ScaleConfig(env={"A": " b"})
    assert "A cannot be honoured: a3s-box drops the blanks" in (
        config_blocker("oci", padded, cpus=1, lacks=a3s_box) or ""
    )
    assert config_blocker("oci", padded, cpus=1) is None


def test_every_box_of_a_fleet_refuses_what_one_host_lacks() -> None:
    service = ServiceConfig(image="nginx")
    config = Config(box=BoxConfig(name="box-a", runtime="oci"), services={"web": service})
    lacks = {"memory_mib": "no cgroups"}
    record = host_record(config, offers(config, lacks), "id", lacks, "place")
    assert run_blocker("web", record, ScaleConfig(memory_mib=64)) == (
        "memory_mib cannot be honoured: no cgroups"
    )
    assert not run_blocker("web", record, ScaleConfig(vcpus=1))


def docker_with(*bindings: tuple[str, str]) -> bytes:
    ports = {"80/tcp": [{"HostIp": address, "HostPort": port} for address, port in bindings]}
    state = {"Status": "running", "Running": True, "Pid": 1, "ExitCode": 0}
    document = {"Name": "/web-1", "State": state, "NetworkSettings": {"Ports": ports}}
    return json.dumps([document]).encode()


@pytest.mark.parametrize("turn", [1, -1])
def test_the_port_of_the_address_s_family_counts(turn: int) -> None:
    data = docker_with(*(("0.0.0.0", "49169"), ("::", "49168"))[::turn])

    def port(address: str) -> int:
        return parsing.parse_inspect(data, address)["web-1"].ports[80]

    assert port("") == port("10.0.0.5") == port("host-a") == 49169
    assert port("fd00::5") == 49168


def test_the_only_family_counts_whatever_the_address_is() -> None:
    data = docker_with(("::", "49168"))
    assert parsing.parse_inspect(data, "10.0.0.5")["web-1"].ports[80] == 49168
