"""`bench`: how fast this is, beside plain nats-py doing the same work on the same server.

A row is one kind of work and the figure it must reach (row.py). Both sides of a row are measured
in turn, round by round (runner.py), so that what disturbs the machine disturbs both, and only the
ratio of a round counts. The peers are others' work: the rows that compare with more of them, and
those that take a fleet of 100,000, are in tests/bench.
"""
