"""The domain: recognition sessions and the recogniser port."""
