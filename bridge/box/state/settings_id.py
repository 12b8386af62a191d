"""A name for the settings of a service: instances of another name are replaced. Pure."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from msgspec.structs import fields

from bridge.settings import ServiceConfig

_OF_THE_FLEET: Final = ("needs", "max_surge", "request_env")
"""Settings of decisions: no instance is made from them."""


def settings_id(service: ServiceConfig) -> str:
    """A short name for the settings of an instance. A setting that has its default does not count,
    so that a later version with more settings gives the same name.
    """
    values = msgspec.to_builtins(service)
    defaults = msgspec.to_builtins(ServiceConfig(image="-"))
    given = {
        item.name: values[item.name]
        for item in fields(ServiceConfig)
        if item.name == "image" or values[item.name] != defaults[item.name]
    }
    for name in _OF_THE_FLEET:
        given.pop(name, None)
    return hashlib.blake2s(msgspec.json.encode(given, order="sorted"), digest_size=6).hexdigest()
