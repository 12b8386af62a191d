"""`uninstall`: delete what box-bridge has made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE, FAILED, USAGE
from bridge.cli.flags import ConfigFile, Link
from bridge.console import err, out

if TYPE_CHECKING:
    from bridge.cli.uninstallation import Plan


async def uninstall(
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")] = False,
    config: ConfigFile = None,
    link: Link | None = None,
) -> int:
    """Delete what box-bridge has made here and on NATS.

    It lists the data directory of this host with its journal and logs, the units of
    systemd, and the streams and buckets of the fleet with their messages. Then it
    asks. The streams stay while another host is live. A Box that runs, or its
    instances, must be stopped first:

        box-bridge drain box-a
        systemctl stop box-bridge
        box-bridge uninstall -c /etc/box-bridge/box.toml

    The configuration, the files of `auth init` and the package itself stay.
    """
    from bridge.cli.box_config import load_config
    from bridge.cli.uninstallation import check_idle, delete, open_nats, survey

    settings = load_config(config, {}, (link or Link()).flags())
    check_idle(settings)
    async with open_nats(settings) as (connection, why):
        plan = await survey(settings, connection, why)
        _print(plan)
        if plan.empty:
            out.print("there is nothing to delete")
            return DONE
        if not yes:
            if not sys.stdin.isatty():
                err.print("box-bridge: nothing was deleted: give --yes", markup=False)
                return USAGE
            answer = input("Delete all of this? [y/N] ")  # noqa: ASYNC250, nothing else is at work
            if answer.strip().lower() not in ("y", "yes"):
                out.print("nothing was deleted")
                return FAILED
        async for deleted in delete(plan, connection):
            out.print(f"deleted: {deleted}", markup=False)
    return DONE


def _print(plan: Plan) -> None:
    for name, messages in plan.streams.items():
        out.print(f"would delete: stream {name} with {messages} messages", markup=False)
    for path in (*plan.units, *plan.paths):
        out.print(f"would delete: {path}", markup=False)
    for sentence in plan.kept:
        out.print(sentence, markup=False)
