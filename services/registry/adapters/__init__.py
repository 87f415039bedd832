"""The domain's ports, over databases."""
