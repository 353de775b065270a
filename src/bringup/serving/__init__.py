"""Serving under load: requests that arrive over time, the engines that batch them, and their latencies."""
