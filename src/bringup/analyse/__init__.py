"""What a timeline means: the summary, memory, advice and comparisons."""
