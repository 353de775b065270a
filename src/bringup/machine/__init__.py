"""What a chip and a host are: the files that describe them."""
