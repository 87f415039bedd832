"""The gateway: OpenAI's HTTP in front, the five services' gRPC behind, translation between and nothing else."""
