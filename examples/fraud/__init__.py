"""Card fraud, generated from a seed."""
