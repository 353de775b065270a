"""The analysis of a timeline: the summary, memory, advice and comparisons."""
