"""The OCI runtime: an instance is a container or a MicroVM that a container engine runs."""
