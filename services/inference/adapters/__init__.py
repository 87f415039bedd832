"""The domain's ports, over engines and their worker processes."""
