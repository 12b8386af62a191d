"""``[nats]``: from the file, the contexts of the nats CLI, the environment and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bridge.config.layers import (
    checked,
    expanded,
    from_environ,
    given_flags,
    mapped_errors,
    overlay,
    place_of,
)
from bridge.config.nats_context import SECRET_FILES, read_context, selected_context
from bridge.settings import NatsConfig

NATS_VARIABLES: Final = {
    "NATS_URL": "url",
    "NATS_CONTEXT": "context",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_CA": "ca",
    "NATS_CERT": "cert",
    "NATS_KEY": "key",
    "NATS_INBOX_PREFIX": "inbox_prefix",
    "NATS_JS_DOMAIN": "domain",
    "BOX_BRIDGE_PREFIX": "prefix",
    "BOX_BRIDGE_REPLICAS": "replicas",
}


def load_nats(
    table: Mapping[str, Any] | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> NatsConfig:
    """The connection settings alone, for a gateway or a command that needs no Box.

    A context counts as part of the layer that names it, beneath that layer's own values. Where no
    layer names a server or a context, the context that is selected in the nats CLI counts, beneath
    all; its name is then the `context` of the result. Paths in the table are relative to the file.
    """
    given = checked(NatsConfig, table or {}, place_of(file, "nats"))
    with mapped_errors(str(file)):
        directory = file.resolve().parent if file else Path()
    layers: list[Mapping[str, Any]] = []
    for layer in (
        _located(given, directory, environ),
        _located(from_environ(NatsConfig, NATS_VARIABLES, environ), Path(), environ),
        _located(given_flags({"nats": flags or {}})["nats"], Path(), environ),
    ):
        if context := layer.get("context"):
            layers.append(_context(str(context), environ))
        layers.append(layer)
    named = any("url" in layer or "context" in layer for layer in layers)
    if not named and (selected := selected_context(environ)):
        layers.insert(0, {**_context(selected, environ), "context": selected})
    return overlay(NatsConfig, layers, "[nats]")


def _context(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The nats CLI's context `name`, each value checked."""
    place = f"context {name}"
    with mapped_errors(place):
        settings = read_context(name, environ)
    return checked(NatsConfig, settings, place)


def _located(
    table: Mapping[str, Any], directory: Path, environ: Mapping[str, str]
) -> dict[str, Any]:
    """`table` with its paths beneath `directory`, and ``~`` replaced."""
    paths = {
        key: str(directory / expanded(table[key], environ, f"[nats] {key}"))
        for key in SECRET_FILES
        if table.get(key)
    }
    return {**table, **paths}
