"""Checks of the bus for `box-bridge doctor`: the server, JetStream, permissions, streams and clock.

They create, change and store nothing.
"""
