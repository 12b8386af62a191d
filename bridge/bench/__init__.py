"""`box-bridge bench`: the speed of this package, beside plain nats-py at the same work.

A row (`row`) is one kind of work and its goal. `runner` measures both sides of a row in turn, round
by round, so that a disturbance of the machine affects both, and only the ratio of a round counts.
Rows that compare with other peers are in tests/bench, because they need a checkout.
"""
