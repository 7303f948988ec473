"""The five specialist agents."""
