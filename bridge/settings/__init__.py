"""The settings of a Box as frozen Structs: one for each table of its configuration file.

`bridge.config` reads the values. The docstring under a field is that key's text in the
configuration reference (docs/generate/settings.py).
"""

from __future__ import annotations

from bridge.settings.box import ENGINES as ENGINES
from bridge.settings.box import BoxConfig as BoxConfig
from bridge.settings.box import KeepEnded as KeepEnded
from bridge.settings.nats import DEFAULT_URL as DEFAULT_URL
from bridge.settings.nats import EVENTS_MAX_BYTES as EVENTS_MAX_BYTES
from bridge.settings.nats import NatsConfig as NatsConfig
from bridge.settings.nats import Timing as Timing
from bridge.settings.process import Config as Config
from bridge.settings.process import InstanceConfig as InstanceConfig
from bridge.settings.process import LogConfig as LogConfig
from bridge.settings.process import NotifyConfig as NotifyConfig
from bridge.settings.secret import Secret as Secret
from bridge.settings.service import STOP_SIGNALS as STOP_SIGNALS
from bridge.settings.service import Probe as Probe
from bridge.settings.service import ServiceConfig as ServiceConfig
