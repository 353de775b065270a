"""What a program launched: the trace, and what makes it."""
