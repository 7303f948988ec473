"""The steady command line."""
