"""TODO oci."""
