"""The errors that box-bridge raises, in one tree.

A caller catches `BridgeError` for all of them, or one branch. An error carries its data as
attributes, and its message says what to do. `bridge.gateway.errors` defines NoRoute and the branch
of ScaleError::

    BridgeError
    ├── ConfigError               a file, variable or flag is wrong
    ├── ProtocolError             a payload does not follow the wire contract
    │   └── NameRefused           a name that cannot be a subject token
    ├── BusError                  the bus, its streams and its buckets
    │   ├── ServerNotStarted      the embedded nats-server did not start
    │   ├── ConnectFailed         no NATS server accepted the connection
    │   ├── CutOff                the connection is lost now: nothing was sent
    │   ├── NoResponders          no program subscribes: nothing was done
    │   ├── NotPermitted          NATS refuses this user the subject: nothing was done
    │   ├── TooLarge              a server or stream limit: nothing was stored
    │   ├── InvalidMessage        a subject or header that no message can have
    │   ├── NoReply               no reply in time: the outcome is unknown
    │   ├── StoreRefused          JetStream refused: nothing was stored
    │   │   └── Conflict          another writer was first
    │   ├── StoreUnsuitable       JetStream is off or not permitted
    │   │   └── ServerTooOld      the NATS server lacks what box-bridge needs
    │   ├── TopologyMismatch      a stream exists with settings that break a promise
    │   └── DurableMismatch       a durable of this name exists with other settings
    ├── BoxError                  a Box cannot work
    │   ├── Refusal               a Box refuses a request: nothing was changed
    │   ├── HostTaken             another Box has this data_dir or this host name
    │   ├── JournalError          the host's journal cannot be read or written
    │   │   ├── JournalDamaged    its file is damaged
    │   │   └── ForeignJournal    another version wrote it; this one cannot read it
    │   ├── EngineUnsuitable      the container engine is missing or too old
    │   └── InstanceError         one instance could not be started or reached
    │       ├── EngineSilent      the container engine does not answer: the outcome is unknown
    │       └── PortTaken         another process listens on its port
    ├── BenchFailed               a measurement did not do the work it measures
    ├── NoRoute                   no instance of the service takes traffic
    └── ScaleError                a request did not do what it asked for
        ├── NoBoxError            no Box answers
        ├── RequestTimeout        no reply in time: the outcome is unknown
        ├── ScaleRefused          a Box refused: nothing was changed
        ├── ScaleCapped           a Box accepted a lower target
        ├── WaitTimeout           accepted, but not Ready in time
        ├── OrderRefused          a Box refused an operator's order: nothing was changed
        ├── DrainStuck            the order holds; a host's instances cannot be replaced
        └── DrainTimeout          the order holds; the host is not empty in time
"""

from __future__ import annotations

from bridge.errors.base import BenchFailed as BenchFailed
from bridge.errors.base import BridgeError as BridgeError
from bridge.errors.base import ConfigError as ConfigError
from bridge.errors.base import NameRefused as NameRefused
from bridge.errors.base import ProtocolError as ProtocolError
from bridge.errors.box import BoxError as BoxError
from bridge.errors.box import EngineSilent as EngineSilent
from bridge.errors.box import EngineUnsuitable as EngineUnsuitable
from bridge.errors.box import ForeignJournal as ForeignJournal
from bridge.errors.box import HostTaken as HostTaken
from bridge.errors.box import InstanceError as InstanceError
from bridge.errors.box import JournalDamaged as JournalDamaged
from bridge.errors.box import JournalError as JournalError
from bridge.errors.box import PortTaken as PortTaken
from bridge.errors.bus import BusError as BusError
from bridge.errors.bus import Conflict as Conflict
from bridge.errors.bus import ConnectFailed as ConnectFailed
from bridge.errors.bus import CutOff as CutOff
from bridge.errors.bus import DurableMismatch as DurableMismatch
from bridge.errors.bus import InvalidMessage as InvalidMessage
from bridge.errors.bus import NoReply as NoReply
from bridge.errors.bus import NoResponders as NoResponders
from bridge.errors.bus import NotPermitted as NotPermitted
from bridge.errors.bus import ServerNotStarted as ServerNotStarted
from bridge.errors.bus import ServerTooOld as ServerTooOld
from bridge.errors.bus import StoreRefused as StoreRefused
from bridge.errors.bus import StoreUnsuitable as StoreUnsuitable
from bridge.errors.bus import TooLarge as TooLarge
from bridge.errors.bus import TopologyMismatch as TopologyMismatch
from bridge.errors.bus import without_secret as without_secret
