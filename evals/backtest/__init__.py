"""A team's recorded history behind the ports of tools.ports, and the loop over it."""
