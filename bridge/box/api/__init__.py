"""The requests that a Box answers: scaling and lists for gateways, orders for operators."""
