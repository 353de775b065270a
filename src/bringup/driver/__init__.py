"""What chip makers write drivers with."""
