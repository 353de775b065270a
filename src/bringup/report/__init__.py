"""The reports: terminal, JSON, HTML and Perfetto."""
