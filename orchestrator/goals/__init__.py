"""Reading of goals."""
