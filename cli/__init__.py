"""The `lares` command: a gRPC client, and the entry point that starts the services."""
