"""Runtime ``oci``: a container engine runs the instances."""
