"""The verbs of the command line. To add one, write its module and add its line to VERBS.

The module of ``"config check"`` is `bridge.cli.commands.config_check`, and its function has the
name of the module. cyclopts imports it when the verb is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cyclopts import App

NAME: Final = "box-bridge"

ABOUT: Final = """Scale, watch and route the instances that Boxes run, over NATS.

To start everything on this machine and scale a service, in two terminals:

    box-bridge up -c box.toml
    box-bridge scale web 3 --wait

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no answer in time,
4 done in part. Times are local, logs add the offset; JSON has times in UTC.
"""

SECTIONS: Final = {
    "Run": {
        "bench": "Measure the speed on your NATS, beside plain nats-py.",
        "box": "Run a Box on an existing NATS, until Ctrl-C or SIGTERM.",
        "demo": "Run a demonstration that verifies each step, in 30 seconds.",
        "gateway": "Serve the fleet over HTTP, for the gateways that you run.",
        "register": "Run a program and register it as an instance meanwhile.",
        "relay": "Send events to an HTTP endpoint, as CloudEvents.",
        "up": "Run a NATS server and a Box on this machine, until Ctrl-C.",
    },
    "Look": {
        "events": "Show the events of instances, stored and live.",
        "history": "Show the requests for a service and the decisions on them.",
        "hosts": "List the hosts: their load, their room and their orders.",
        "logs": "Show what instances have written to stdout and stderr.",
        "plan": "Explain what a scale request would do; change nothing.",
        "ps": "List the instances with their state, host and load.",
        "routes": "List the endpoints that take traffic, or watch them.",
        "services": "List the services: wanted, ready, and what is missing.",
        "status": "Show what a service lacks and why, on one page.",
        "timeline": "Draw the history of a service's instances.",
        "version": "Show the versions of box-bridge and its dependencies.",
    },
    "Operate": {
        "exec": "Run a command in an instance of this host.",
        "rebalance": "Even out the hosts with the fewest moves.",
        "reload": "Apply changed services to a running Box.",
        "restart": "Replace the instances of a service, or one instance.",
        "scale": "Set the number of instances of a service.",
        "start": "Start stopped services with the count that they had.",
        "stop": "Scale services to 0, and remember their counts.",
    },
    "Hosts": {
        "cordon": "Place nothing new on a host; what it runs stays.",
        "drain": "Empty a host: replace each instance elsewhere first.",
        "uncordon": "End a cordon or a drain: the host takes instances again.",
    },
    "Configure": {
        "auth add": "Add a NATS user with the rights of a role.",
        "auth certs": "Make a certificate authority and TLS certificates, for tests.",
        "auth init": "Make the NATS users of a fleet, and a server's configuration.",
        "auth list": "List the NATS users, with their roles and public keys.",
        "auth revoke": "Remove a NATS user and its files.",
        "auth rotate": "Give a NATS user a new key; a reload ends the old one.",
        "completion": "Print what completes words and names in your shell.",
        "config check": "Check a configuration file and print the effective settings.",
        "doctor": "Check all that a Box or a gateway needs, with cures.",
        "init": "Write a configuration file to begin with.",
        "uninstall": "Delete what box-bridge has made here and on NATS.",
    },
}
"""The verbs by the section of the overview, each with the first line of its help."""

VERBS: Final = {verb: line for verbs in SECTIONS.values() for verb, line in verbs.items()}
"""Each verb, and the first line of its help: `overview` prints it without importing the verb."""

GROUPS: Final = {
    "auth": "Make and change the NATS users of a fleet.",
    "config": "Look at a configuration file.",
}

_FLAGS: Final = {
    "--help (-h)": "Display this message and exit.",
    "--version": "Display application version.",
}
_WIDTH: Final = 80  # letters of a line of the overview


def overview() -> str:
    """The help of the command line as a whole: what cyclopts would print, without its cost."""
    panels = [("Commands", _FLAGS)]
    for section, verbs in SECTIONS.items():
        names = {verb.partition(" ")[0] for verb in verbs}
        panels.append((section, {name: GROUPS.get(name) or verbs[name] for name in sorted(names)}))
    return f"Usage: {NAME} COMMAND\n\n{ABOUT}\n" + "".join(_panel(*panel) for panel in panels)


def _panel(title: str, rows: dict[str, str]) -> str:
    first, inner = max(map(len, rows)), _WIDTH - 4
    lines = [
        f"╭─ {title} {'─' * (_WIDTH - 5 - len(title))}╮",
        *(f"│ {f'{name:<{first}}  {line}':<{inner}} │" for name, line in rows.items()),
        f"╰{'─' * (_WIDTH - 2)}╯",
    ]
    return "\n".join(lines) + "\n"


def build_app(*, complete: bool = False) -> App:
    """The parser of the command line. It imports a verb when the verb is used.

    `complete` imports all of them, so that the help of a group has the first line of each.
    """
    from cyclopts import App, Group

    from bridge.version import VERSION

    app = App(
        name=NAME,
        version=VERSION,
        help=ABOUT,
        help_format="plaintext",
        help_flags=["--help", "-h"],
    )
    groups = {"": app}
    panels = {section: Group(section, sort_key=number) for number, section in enumerate(SECTIONS)}
    for verb, section in [(verb, name) for name, verbs in SECTIONS.items() for verb in verbs]:
        group, _, name = verb.rpartition(" ")
        if group not in groups:
            groups[group] = App(
                name=group, group=panels[section], help=GROUPS[group], help_format="plaintext"
            )
            app.command(groups[group])
        module = verb.replace(" ", "_")
        panel = None if group else panels[section]
        groups[group].command(f"bridge.cli.commands.{module}:{module}", name=name, group=panel)
        if complete:
            groups[group][name]  # imports it
    return app
