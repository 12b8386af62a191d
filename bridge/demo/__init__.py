"""`box-bridge demo`: a fleet on this machine that is scaled, killed and rolled, step by step."""
