"""OpenAI's JSON <-> the contract's messages. Pure: no I/O, no clock."""
