"""The `lares` command: a gRPC client of the services, and the entry point that starts them."""
