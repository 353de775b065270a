"""Automatic placement: which launches of a recorded program belong on the host, and which on the chip."""
