"""Roles, their NATS permissions, and the directory of credentials and server configuration."""
