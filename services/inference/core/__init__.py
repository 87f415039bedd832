"""The domain: the pool of loaded models, generation, and the engine port."""
