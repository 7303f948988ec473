"""A simulated world behind the ports of tools.ports."""
