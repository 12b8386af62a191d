"""The verbs of `box-bridge`, one module for each: its flags, its help and its work.

A module imports at its top only what parsing and printing need. A function that connects, or runs
a Box, imports asyncio, the bus, the gateway or the Box itself, so that `--help` and wrong usage
stay quick. A verb is a plain function or a coroutine function that returns the exit code.
"""
