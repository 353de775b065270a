"""The device `chip` in PyTorch: torch.chip, and CUDA programs on it."""
