"""The domain's ports, over the database, the store and the training worker."""
