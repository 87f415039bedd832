"""The `lares` command: a gRPC client of the services, and the entry point that starts them."""

import os

# Before gRPC is imported. Its threads would be started again in each worker between fork and exec, and now and then
# kill it there; nothing of ours forks and goes on with gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
