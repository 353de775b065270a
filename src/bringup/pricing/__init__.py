"""Seconds for the work of a launch on a chip."""
