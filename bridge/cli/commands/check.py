"""`config check`: is it right, and what does it come to?"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.fleet.host_record import offers
from bridge.cli.connect import configuration, require_services
from bridge.cli.exit_codes import DONE
from bridge.console import out, print_json
from bridge.errors import without_secret
from bridge.settings import BoxConfig, NatsConfig, ServiceConfig


class _Checked(Struct):
    ok: bool
    box: BoxConfig
    nats: NatsConfig
    services: dict[str, ServiceConfig]


def run_check(file: Path | None, *, json: bool) -> int:
    """Print what the configuration comes to; an error is raised as ConfigError."""
    config = require_services(configuration(file, {}))
    offers(config)
    hidden = {key: "(set)" for key in ("password", "token") if getattr(config.nats, key)}
    nats = replace(config.nats, **hidden, url=without_secret(config.nats.url))
    if json:
        print_json(_Checked(True, config.box, nats, config.services))
        return DONE
    box = config.box
    out.print(f"host {box.name}: at most {box.max_instances} instances at {box.address}, ", end="")
    runtime = f"oci by {box.engine}" if box.runtime == "oci" else box.runtime
    out.print(f"ports {box.ports}, runtime {runtime}, data in {box.data_dir}")
    out.print(f"NATS {nats.url}, prefix {nats.prefix}")
    if box.allow_images:
        out.print(f"images that requests may name: {', '.join(box.allow_images)}", markup=False)
    for name, service in config.services.items():
        probe = f"http {service.probe.http}" if service.probe.http else "tcp"
        words = " ".join([service.image, *service.entrypoint, *service.command]).strip()
        out.print(f"service {name}: {words}  (probe: {probe})", markup=False)
    out.print("ok")
    return DONE
