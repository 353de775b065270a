"""torch.compile on the chip."""
