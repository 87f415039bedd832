"""Registry: what models there are, and where each one stands."""
