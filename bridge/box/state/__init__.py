"""The fleet's records and state as plain values: slots, capacity, lifecycle and limits. Pure."""
