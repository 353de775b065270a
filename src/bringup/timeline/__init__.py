"""The replay of a recording on host, link and chip."""
