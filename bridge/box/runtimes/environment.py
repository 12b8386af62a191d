"""What a Box hands its instances in their environment. `bridge.config` reads it there.

Nothing of it is secret: an instance that is to speak for itself gets credentials of its own, by
``[services.<name>] env``. Pure.
"""

from __future__ import annotations

import msgspec

from bridge.config import ADDRESS, HOST, METADATA, REGISTRATION
from bridge.settings import Config, ServiceConfig
from bridge.subjects import DEFAULT_PREFIX


def box_environment(config: Config) -> dict[str, str]:
    """What all instances of a Box get: how to reach NATS, and where gateways reach this host.

    The URL has no credentials in it; a service's own `env` overrides it.
    """
    given = {
        "NATS_URL": ",".join(map(_anonymous, config.nats.urls)),
        "NATS_CA": config.nats.ca,
        HOST: config.box.name,
        ADDRESS: config.box.address,
    }
    if config.nats.prefix != DEFAULT_PREFIX:
        given["BOX_BRIDGE_PREFIX"] = config.nats.prefix
    return {name: value for name, value in given.items() if value}


def service_environment(service: ServiceConfig) -> dict[str, str]:
    """What the instances of one service get beside that."""
    given = {REGISTRATION: service.registration}
    if service.metadata:
        given[METADATA] = msgspec.json.encode(service.metadata).decode()
    return given


def _anonymous(url: str) -> str:
    """`url` without what stands before its @."""
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]
