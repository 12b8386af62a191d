"""A Box: a host that runs instances, and decides with the other Boxes which host runs what.

`daemon` puts one together. Its packages, from the top: `api` (requests that it answers), `runner`
(this host's instances), `fleet` (state that all Boxes share), `journal`, `scheduler` (decisions),
`runtimes` and `state` (records).
"""
