"""The command line put together. What a verb does is imported when it is called."""

from __future__ import annotations

from cyclopts import App

from bridge.cli import bench_verbs, fleet_verbs, gateway_verbs, host_verbs, instance_verbs
from bridge.version import VERSION

app = App(
    name="box-bridge",
    version=VERSION,
    help="""Scale, watch and route the instances that Boxes run, over NATS.

Start everything on this machine, then ask for three replicas, in two terminals:

    box-bridge up -c box.toml
    box-bridge scale web 3 --wait

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answered or it took too long.
""",
    help_format="plaintext",
    help_flags=["--help", "-h"],
)
config_app = App(name="config", help="Look at a configuration file.", help_format="plaintext")

for verb in (
    host_verbs.up,
    host_verbs.box,
    host_verbs.logs,
    host_verbs.doctor,
    host_verbs.demo,
    host_verbs.version,
    gateway_verbs.scale,
    gateway_verbs.ps,
    gateway_verbs.events,
    gateway_verbs.routes,
    gateway_verbs.timeline,
    gateway_verbs.relay,
    instance_verbs.register,
    fleet_verbs.hosts,
    fleet_verbs.services,
    fleet_verbs.cordon,
    fleet_verbs.drain,
    fleet_verbs.uncordon,
    fleet_verbs.rebalance,
    fleet_verbs.history,
    fleet_verbs.plan,
    bench_verbs.bench,
):
    app.command(verb)
config_app.command(host_verbs.check)
app.command(config_app)
