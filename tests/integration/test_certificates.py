"""Mutual TLS with the certificates of `auth certs`, and their renewal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bridge.auth.certificates import make_certificates, tls_block
from bridge.bus.core.connection import Connection
from bridge.bus.diagnostics import checks
from bridge.bus.embedded_server import EmbeddedServer
from bridge.diagnostics import Status
from bridge.errors import ConnectFailed
from bridge.settings import NatsConfig
from tests.support import eventually


def settings(directory: Path, url: str) -> NatsConfig:
    return NatsConfig(
        url=url,
        ca=str(directory / "ca.pem"),
        cert=str(directory / "box-a.pem"),
        key=str(directory / "box-a.key"),
        tls_first=True,
    )


def renew(directory: Path, days: int) -> None:
    make_certificates(directory, servers=["127.0.0.1"], clients=["box-a"], days=days)


@pytest.mark.slow
async def test_a_client_with_a_certificate_connects_and_renewed_files_need_no_restart(
    tmp_path: Path,
) -> None:
    certs, config = tmp_path / "certs", tmp_path / "nats.conf"
    renew(certs, 5)
    assert {file.stat().st_mode & 0o777 for file in certs.iterdir()} == {0o600}
    config.write_text(tls_block(certs))
    async with EmbeddedServer(tmp_path / "nats", config=config) as server:
        foreign = NatsConfig(url=server.url, ca=str(certs / "ca.pem"), tls_first=True)
        with pytest.raises(ConnectFailed):
            async with Connection.open(foreign, name="test"):
                raise AssertionError("the server takes no client without a certificate")
        async with Connection.open(settings(certs, server.url), name="test") as connection:
            before = connection.certificate_expiries()
            assert [*before] == ["server", "client"]
            told = await checks.server(connection)
            assert told.status is Status.WARN
            assert "the certificate of the client expires on" in told.message
            renew(certs, 60)
            os.kill(server.pid, signal.SIGHUP)
            log = server.log_file
            await eventually(lambda: "Reloaded server configuration" in log.read_text())
            await connection.flush()  # it is still connected
            await server.kill()
            await server.start()
            await connection.wait_connected()
            await eventually(lambda: connection.connected)
            after = connection.certificate_expiries()
            assert all(after[whose] > before[whose] for whose in before)
            value = connection.metrics.registry.get_sample_value(
                "box_bridge_certificate_expiry_timestamp_seconds", {"certificate": "server"}
            )
            assert value == after["server"].timestamp()
            assert (await checks.server(connection)).status is Status.OK
