"""`ps`: the fleet's instances, once or again and again; or this host's, as its journal has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group

from bridge.cli import watch as watching
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.cli.local_journal import JournalView
from bridge.console import err, instances_table, notices, out, print_json
from bridge.errors import ConfigError, ConnectFailed, CutOff
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import NoBoxError, RequestTimeout
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name


async def run_ps(
    service: str,
    flags: Mapping[str, Any],
    journal: JournalView,
    *,
    watch: bool,
    local: bool,
    json: bool,
) -> int:
    """List the instances of `service`, or of all; as the journal has them if nobody answers."""
    if service:
        check_name("service", service)
    if local:
        if watch:
            raise ConfigError("--local", "looks once: leave --watch out")
        journal.show(service, json=json)
        return DONE
    try:
        async with connected(flags, "ps") as connection:
            client = ScaleClient(connection)
            if watch:
                await watching.watch(
                    lambda: client.observe(service),
                    _picture,
                    lambda seen: _show(seen, json),
                    json=json,
                )
            else:
                _show(await client.observe(service), json)
    except (ConnectFailed, CutOff, NoBoxError, RequestTimeout):
        journal.show_instead(service, json=json)
        raise
    return DONE


def _show(seen: InstancesResponse, json: bool) -> None:
    if json:
        print_json(seen)
    elif seen.instances or seen.notices:
        out.print(_picture(seen))
    else:
        err.print("no instances")


def _picture(seen: InstancesResponse) -> Group:
    return Group(instances_table(seen), *notices(seen))
