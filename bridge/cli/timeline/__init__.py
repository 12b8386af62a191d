"""The timeline of a service: the history of its instances (pure), drawn as text or as SVG."""
