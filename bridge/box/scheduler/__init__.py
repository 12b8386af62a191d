"""Every decision about services, slots and hosts, as pure functions over the fleet's state."""
