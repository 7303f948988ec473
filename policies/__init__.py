"""The Cedar policy set and the engine that loads and asks it."""
