"""The payloads on the bus, exactly as in the Rust crate a3s-box-core 2.4.0.

- `decode` refuses everything that serde_json would refuse, and names the field.
- `encode` writes the bytes that serde_json would write: every field, in the contract's order, None
  as null, times in UTC with 0, 3 or 6 fraction digits, f32 as f32.

msgspec reads what usual peers send. `serde_json` reads again what msgspec refuses though
serde_json would not, and a message in which a field may stand twice.

Known differences from serde, none of which two well-behaved peers can meet: times are kept to
the microsecond (Rust: nanosecond) and within the years 1 to 9999, a leap second is the moment that
follows it, a struct written as an array is refused, and so is text that is not UTF-8 even in a
field that nobody knows. A message of more than 64 KiB is not read again.
"""

from __future__ import annotations

from bridge.protocol.codec import decode as decode
from bridge.protocol.codec import encode as encode
from bridge.protocol.messages import U8 as U8
from bridge.protocol.messages import U32 as U32
from bridge.protocol.messages import U32_MAX as U32_MAX
from bridge.protocol.messages import HostStats as HostStats
from bridge.protocol.messages import InstanceDeregistration as InstanceDeregistration
from bridge.protocol.messages import InstanceEvent as InstanceEvent
from bridge.protocol.messages import InstanceHealth as InstanceHealth
from bridge.protocol.messages import InstanceInfo as InstanceInfo
from bridge.protocol.messages import InstanceRegistration as InstanceRegistration
from bridge.protocol.messages import InstancesRequest as InstancesRequest
from bridge.protocol.messages import InstancesResponse as InstancesResponse
from bridge.protocol.messages import InstanceState as InstanceState
from bridge.protocol.messages import ScaleConfig as ScaleConfig
from bridge.protocol.messages import ScaleRequest as ScaleRequest
from bridge.protocol.messages import ScaleResponse as ScaleResponse
from bridge.protocol.times import Time as Time
from bridge.protocol.times import format_time as format_time
from bridge.protocol.times import in_utc as in_utc
from bridge.protocol.times import now as now
from bridge.protocol.times import parse_time as parse_time
