"""The environment variables that a Box gives its instances; `bridge.config` reads them there.

They hold nothing secret. An instance that needs credentials of its own gets them from
``[services.<name>] env``. Pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.config import ADDRESS, HOST, METADATA, REGISTRATION
from bridge.settings import Config, ServiceConfig
from bridge.subjects import DEFAULT_PREFIX

_INHERITED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
)
_LOCALE: Final = "LC_"


def inherited_environment(config: Config) -> dict[str, str]:
    """The variables of the Box that its process instances get: no secret of the Box or of the
    operator is in the variables that every program needs.
    """
    names = {*_INHERITED, *config.box.inherit_env}
    return {
        name: value
        for name, value in config.environ.items()
        if name in names or name.startswith(_LOCALE)
    }


def box_environment(config: Config) -> dict[str, str]:
    """The variables of every instance of a Box: how to reach NATS, and this host's address.

    The URL carries no credentials. A service's own `env` overrides these variables.
    """
    variables = {
        "NATS_URL": ",".join(config.nats.urls),
        "NATS_CA": config.nats.ca,
        HOST: config.box.name,
        ADDRESS: config.box.address,
    }
    if config.nats.prefix != DEFAULT_PREFIX:
        variables["BOX_BRIDGE_PREFIX"] = config.nats.prefix
    return {name: value for name, value in variables.items() if value}


def service_environment(service: ServiceConfig) -> dict[str, str]:
    """The variables that the instances of one service get in addition."""
    variables = {REGISTRATION: service.registration}
    if service.metadata:
        variables[METADATA] = msgspec.json.encode(service.metadata).decode()
    return variables
