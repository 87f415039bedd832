"""Inference: loads models into workers and generates with them."""
