"""What a registration may say: the same for who sends it and for who reads it."""

from __future__ import annotations

import pytest

from bridge.box.runner.self_reports import SelfReports
from bridge.box.runtimes.environment import box_environment, service_environment
from bridge.box.state import lifecycle
from bridge.bus.core.message import Message
from bridge.config import load, load_instance
from bridge.errors import ConfigError, ProtocolError
from bridge.ids import new_id
from bridge.observe import Metrics
from bridge.protocol import InstanceHealth, InstanceState, encode, now
from bridge.settings import Config, InstanceConfig, NatsConfig, ServiceConfig
from bridge.subjects import is_name
from bridge.validation import (
    MAX_METADATA,
    check_endpoint,
    check_health,
    check_metadata,
    endpoint_of,
    split_endpoint,
)


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.5:8080", "localhost:1", "a-b.example.com:65535", "[fd00::5]:80", "[::1]:80", "a_b:80"],
)
def test_an_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint
    assert endpoint_of(*split_endpoint(endpoint)) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", ":80", "host", "host:", "host:0", "host:08", "host:65536", "host:x", "host:-1"),
        *("fd00::5:80", "[fd00::5]", "[]:80", "[host]:80", "http://host:80", "host:80/", "a b:80"),
        *("host:80\n", "host:٨", "a:1,b:2", "x" * 254 + ":80"),
    ],
)
def test_an_invalid_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ProtocolError, match="endpoint"):
        check_endpoint(endpoint)


def test_metadata_has_a_limit_in_bytes() -> None:
    fits = {"k" * 10: "v" * (MAX_METADATA - 10)}
    assert check_metadata(fits) == fits
    with pytest.raises(ProtocolError, match="16385 bytes is larger than 16 KiB"):
        check_metadata({**fits, "": "x"})
    with pytest.raises(ProtocolError, match="larger than 16 KiB"):
        check_metadata({"k": "€" * 6000})


@pytest.mark.parametrize("cpu", [-0.1, 1e6, float("inf"), float("nan")])
def test_a_cpu_that_cannot_be_is_refused(cpu: float) -> None:
    with pytest.raises(ProtocolError, match="cpu_percent"):
        check_health(InstanceHealth(cpu_percent=cpu))


def test_an_id_is_a_name_however_long_the_service_s_is() -> None:
    for service in ("web", "a" * 63, "a" * 51 + "-" + "b" * 11):
        assert is_name(new_id(service))
    assert new_id("web").startswith("web-")
    assert len({new_id("web") for _ in range(100)}) == 100


# ── what the environment of an instance has ──────────────────────────────────────────────


def test_what_a_box_hands_over_is_what_an_instance_reads() -> None:
    nats = NatsConfig(url="nats://u:p@a:4222, tls://t@b:4222,c:1", prefix="test", ca="/ca.pem")
    config = load(environ={}, flags={"box": {"name": "box-a", "address": "fd00::5"}})
    given = box_environment(Config(box=config.box, nats=nats))
    assert given == {
        "NATS_URL": "nats://a:4222,tls://b:4222,nats://c:1",
        "NATS_CA": "/ca.pem",
        "BOX_HOST": "box-a",
        "BOX_ADDRESS": "fd00::5",
        "BOX_BRIDGE_PREFIX": "test",
    }
    service = ServiceConfig(command=["x"], metadata={"zone": "ä"}, registration="self")
    mine = {"BOX_INSTANCE_ID": "web-1", "BOX_SERVICE": "web", "PORT": "20000"}
    assert load_instance(environ=given | service_environment(service) | mine) == InstanceConfig(
        instance_id="web-1",
        service="web",
        host="box-a",
        address="fd00::5",
        port=20000,
        metadata={"zone": "ä"},
        registered_by_box=False,
    )
    by_box = service_environment(ServiceConfig(command=["x"]))
    assert load_instance(environ=by_box | mine).registered_by_box
    assert not load_instance(environ=by_box).registered_by_box


@pytest.mark.parametrize("given", ["[]", "{", '{"a": 1}'])
def test_metadata_that_no_box_has_handed_over_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="BOX_METADATA"):
        load_instance(environ={"BOX_METADATA": given})


def test_a_port_counts_only_where_there_is_a_box() -> None:
    assert load_instance(environ={"PORT": "http"}) == InstanceConfig()
    with pytest.raises(ConfigError, match="'70000' is not a port"):
        load_instance(environ={"PORT": "70000", "BOX_INSTANCE_ID": "web-1"})


def test_a_service_configures_who_registers_it() -> None:
    with pytest.raises(ValueError, match='must be "box" or "self"'):
        ServiceConfig(command=["x"], registration="me")
    with pytest.raises(ValueError, match="metadata: 16385 bytes is larger than 16 KiB"):
        ServiceConfig(command=["x"], metadata={"k": "v" * MAX_METADATA})


# ── what instances say of themselves ─────────────────────────────────────────────────────


def test_a_report_counts_while_it_is_fresh_and_ends_with_its_instance() -> None:
    clock = [100.0]
    mine = {"web-1": lifecycle.begin("web-1", "web", now()).info}
    metrics = Metrics()
    reports = SelfReports(metrics, mine, {"web-2"}, 10.0, lambda: clock[0])
    said = InstanceHealth(inflight_requests=3)

    def take(instance_id: str) -> None:
        reports.take(Message(f"box.health.web.{instance_id}", "", encode(said), b""))

    take("web-1")
    clock[0] += 10.0
    report = reports.of("web-1")
    assert report is not None
    assert (report.health, report.at) == (said, 100.0)
    clock[0] += 0.1
    assert reports.of("web-1") is None
    take("web-1")
    reports.forget("web-1")
    assert reports.of("web-1") is None
    take("web-2")  # another host's: that is for its own Box
    assert metrics.refusals() == {}
    ended, _ = lifecycle.step(lifecycle.begin("web-1", "web", now()), InstanceState.FAILED, now())
    mine["web-1"] = ended.info
    take("web-1")
    assert reports.of("web-1") is None
    assert metrics.refusals() == {"health: ended instance": 1}
