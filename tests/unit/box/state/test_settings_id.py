"""The name of a service's settings: it changes with what an instance is made from."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.box.state.settings_id import settings_id
from bridge.settings import Probe, ServiceConfig

WEB = ServiceConfig(command=["web"], env={"A": "1", "B": "2"})


@pytest.mark.parametrize(
    "changed",
    [
        replace(WEB, command=["web", "-v"]),
        replace(WEB, env={"A": "2"}),
        replace(WEB, probe=Probe(http="/")),
        replace(WEB, stop_grace=1.0),
    ],
)
def test_settings_of_an_instance_change_the_name(changed: ServiceConfig) -> None:
    assert settings_id(changed) != settings_id(WEB)


@pytest.mark.parametrize(
    "same",
    [
        replace(WEB, env={"B": "2", "A": "1"}),
        replace(WEB, needs={"zone": "a"}),
        replace(WEB, max_surge=3),
    ],
)
def test_what_no_instance_has_keeps_the_name(same: ServiceConfig) -> None:
    assert settings_id(same) == settings_id(WEB)


def test_the_name_is_the_same_in_every_version() -> None:
    assert settings_id(ServiceConfig(command=["web"])) == "49b7bfccd2a9"
