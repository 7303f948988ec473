"""Goals, diagnosis, planner, gate, graph and reconcile loop."""
