"""`init`: a configuration file to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE
from bridge.console import out
from bridge.errors import ConfigError

_TEXT: Final = """\
# The configuration of a Box. `box-bridge config check` checks it, `box-bridge up` runs it.

[box]
# name = "{name}"  # this host's name on the bus
# address = "127.0.0.1"  # where gateways reach the instances of this host
# max_instances = 20
# data_dir = "data"  # the journal and the logs

[services.web]
command = ["python3", "-m", "http.server", "{{port}}"]  # {{port}} becomes the instance's port
# env = {{ LEVEL = "debug" }}
# probe = {{ http = "/" }}  # the readiness check; the default is a TCP connection
"""


def init(file: Annotated[Path, Parameter(help="The file to write.")] = Path("box.toml"), /) -> int:
    """Write a configuration file to begin with.

    It configures one service, a web server. Its comments show the settings that
    most hosts change. An existing file stays as it is. For example:

        box-bridge init
        box-bridge up
    """
    import socket

    name = socket.gethostname().partition(".")[0].lower()
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(_TEXT.format(name=name))
    except FileExistsError as exc:
        raise ConfigError(str(file), "exists already, and stays as it is") from exc
    except OSError as exc:
        raise ConfigError(str(file), f"cannot be written: {exc.strerror}") from exc
    config = "" if file == Path("box.toml") else f" -c {file}"
    out.print(f"{file} is written. Next: `box-bridge up{config}`")
    return DONE
