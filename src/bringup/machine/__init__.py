"""Chip files and host files, and their validation."""
