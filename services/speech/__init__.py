"""Speech: turns speech into text, live or from a file."""
