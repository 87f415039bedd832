"""The Hugging Face Hub's shapes: messages to its JSON, and its URLs' parts back. Pure functions."""
