"""Sweeps: programs priced on many chips, hosts and variants of chips, as one table."""
