"""What people and machines read: terminal, JSON, HTML, Perfetto."""
