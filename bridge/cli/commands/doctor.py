"""`doctor`: a finding for each thing that a Box or a gateway needs, with its cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.text import Text

from bridge.cli.exit_codes import DONE, FAILED
from bridge.cli.flags import ConfigFile, Json, Link, RoleName
from bridge.console import out, print_json

if TYPE_CHECKING:
    from bridge.cli.examination import ReportLine

_WIDTH: Final = len("permissions")
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "bright_black"}


async def doctor(
    *,
    config: ConfigFile = None,
    role: Annotated[
        RoleName | None, Parameter(help="Check the rights of this role, and no file.")
    ] = None,
    name: Annotated[
        str,
        Parameter(help="The user's name: a box, durable, relay or instance needs it."),
    ] = "",
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Check all that a Box or a gateway needs, with cures.

    With a configuration file it checks NATS as that Box uses it, and this host.
    Without a file it checks NATS as a gateway uses it. For example:

        box-bridge doctor -c box.toml
        box-bridge doctor -s nats://127.0.0.1:4222
        box-bridge doctor --role durable --name mailer --context /etc/mailer.json

    It reports the permissions that the NATS user lacks for its role, and those that
    it has beyond it.
    Each check prints one line. Nothing is changed, and a Box may be at work. The
    exit code is 1 if a check failed; warnings do not count.
    """
    from bridge.auth.roles import NAMED, Role, check_member
    from bridge.cli.examination import examine

    kind = Role(role) if role else None
    if kind in NAMED:
        check_member(kind, name)
    report = await examine(config, (link or Link()).flags(), role=kind, name=name)
    if json:
        print_json(report)
    else:
        for line in report.checks:
            out.print(_render(line))
    return DONE if report.ok else FAILED


def _render(line: ReportLine) -> Text:
    text = Text(f"{line.status:<5}", style=_STYLES[line.status])
    text.append(f"{line.check:<{_WIDTH}}  ", style="bold")
    message = f"{line.message}. Cure: {line.fix}" if line.fix else line.message
    return text.append(message.replace("\n", " "), style="default")
