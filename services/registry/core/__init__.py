"""The domain: models, versions and aliases, and the ports they are kept through."""
