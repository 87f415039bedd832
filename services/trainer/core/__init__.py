"""The domain: jobs, datasets, and the ports they are run and kept through."""
