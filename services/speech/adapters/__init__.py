"""The domain's ports, over recognisers and their worker processes."""
