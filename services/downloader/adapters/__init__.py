"""The domain's ports, over sources, the disk and the database."""
