"""Models and programs of other frameworks, as launches on the chip: see docs/frameworks.md."""
