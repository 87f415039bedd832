"""What every service shares: errors, names, settings, server, channels, telemetry and the worker harness.

It imports no service and no heavy library, and this file imports nothing: a worker that needs only
`worker_port` must not pay for gRPC.
"""
