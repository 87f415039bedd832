"""Pure ASGI middleware, from the outside in: observe, guard, limits."""
