"""The host's journal: the state and the events that must survive a crash of the Box, in SQLite."""
