"""The recording of a program's launches, and its result, the trace."""
