"""What a chip maker needs for a driver: a skeleton, a list, a check, and which kernel to write next."""
