"""Complete model specs on real and generated data."""
