"""Offline evaluation of the crew."""
