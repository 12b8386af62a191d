"""The process runtime: an instance is a process group under a shim that reports its exit code."""
