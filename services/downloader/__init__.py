"""Downloader: fetches models, verifies every byte and keeps them in the store."""
