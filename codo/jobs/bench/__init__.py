"""How fast codo is on a machine, and what limits it."""
