"""OpenAI-compatible HTTP in front of the five gRPC services."""
