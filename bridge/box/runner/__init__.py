"""The instances of this host: slots are claimed; instances start, drain and restart."""
