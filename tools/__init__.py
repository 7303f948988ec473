"""One wrapper per outside system or body of mathematics."""
