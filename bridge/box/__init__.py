"""A Box: a host that runs instances, and its share in deciding who runs what."""
