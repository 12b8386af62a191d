"""The least that is a service: accepts connections on the port it is told, and closes them.

For hosts with hundreds of real processes: it imports nothing that is not built in, and takes some
ten milliseconds of processor to start and five megabytes to run. Run it with ``python -I -S``.
"""

import _socket
import sys

listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
while True:
    descriptor, _ = listener._accept()  # type: ignore[attr-defined]
    _socket.close(descriptor)
