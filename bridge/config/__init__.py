"""Configuration: one TOML file, the environment and flags, read once into frozen Structs.

A flag overrides the environment, which overrides the file. No other module reads the environment or
a context of the nats CLI. An unknown key is an error that names the nearest known one, because a
typo must not silently become a default. Every failure is a ConfigError.
"""

from __future__ import annotations

from bridge.config.load import BOX_VARIABLES as BOX_VARIABLES
from bridge.config.load import find_file as find_file
from bridge.config.load import load as load
from bridge.config.nats import NATS_VARIABLES as NATS_VARIABLES
from bridge.config.nats import load_nats as load_nats
from bridge.config.process import ADDRESS as ADDRESS
from bridge.config.process import HOST as HOST
from bridge.config.process import INSTANCE_ID as INSTANCE_ID
from bridge.config.process import METADATA as METADATA
from bridge.config.process import PORT as PORT
from bridge.config.process import REGISTRATION as REGISTRATION
from bridge.config.process import SERVICE as SERVICE
from bridge.config.process import child_environment as child_environment
from bridge.config.process import load_instance as load_instance
from bridge.config.process import load_log as load_log
from bridge.config.process import load_notify as load_notify
