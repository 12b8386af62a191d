"""`config check`: whether a configuration is right, and the effective settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from msgspec import Struct

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import ConfigFile, Json
from bridge.console import out, print_json

if TYPE_CHECKING:
    from bridge.settings import BoxConfig, Config, NatsConfig, ServiceConfig


class _Checked(Struct):
    ok: bool
    box: BoxConfig
    nats: NatsConfig
    services: dict[str, ServiceConfig]


def config_check(
    file: Annotated[Path | None, Parameter(help="The TOML file, as --config names it.")] = None,
    /,
    *,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Check a configuration file and print the effective settings.

    The settings include those of the environment. The check finds what would
    fail at the first start of an instance: a program that is not there, or a
    placeholder that does not exist. For example:

        box-bridge config check box.toml
        BOX_BRIDGE_MAX_INSTANCES=3 box-bridge config check --json
    """
    from msgspec.structs import replace

    from bridge.box.fleet.host_record import offers
    from bridge.box.runtimes.process.programs import launch_problems
    from bridge.cli.box_config import load_config, require_services
    from bridge.config import find_file
    from bridge.errors import ConfigError, without_secret

    if file is not None and config is not None and file != config:
        raise ConfigError("--config", f"{config} is not {file}: give one of them")
    config = file or config
    settings = require_services(load_config(config, {}))
    offers(settings)  # raises ConfigError for a service that no host could run
    if problems := [f"{place}: {problem}" for place, problem in launch_problems(settings)]:
        raise ConfigError(str(find_file(config) or "configuration"), "\n  ".join(problems))
    hidden = {key: "(set)" for key in ("password", "token") if getattr(settings.nats, key)}
    nats = replace(settings.nats, **hidden, url=without_secret(settings.nats.url))
    if json:
        print_json(_Checked(True, settings.box, nats, settings.services))
    else:
        _print(replace(settings, nats=nats))
    return DONE


def _print(config: Config) -> None:
    box, nats = config.box, config.nats
    out.print(f"host {box.name}: at most {box.max_instances} instances at {box.address}, ", end="")
    runtime = f"oci by {box.engine}" if box.runtime == "oci" else box.runtime
    out.print(f"ports {box.ports}, runtime {runtime}, data in {box.data_dir}")
    source = f" (context {nats.context})" if nats.context else ""
    out.print(f"NATS {nats.url}{source}, prefix {nats.prefix}")
    if box.allow_images:
        out.print(f"images that requests may name: {', '.join(box.allow_images)}")
    for name, service in config.services.items():
        kind = "http" if service.probe.https is None else "https"
        probe = f"{kind} {service.probe.path}" if service.probe.path else "tcp"
        words = " ".join([service.image, *service.entrypoint, *service.command]).strip()
        out.print(f"service {name}: {words}  (probe: {probe})")
    out.print("ok")
