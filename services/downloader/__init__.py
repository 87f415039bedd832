"""The Downloader: brings models into the house, verifies every byte, and keeps the bytes."""
