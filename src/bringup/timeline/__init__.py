"""The recording replayed on host, link and chip."""
