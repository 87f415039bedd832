"""The domain: downloads, the blob store's rules, and the ports to sources and state."""
