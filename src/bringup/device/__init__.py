"""The device `chip` in PyTorch: torch.chip, and CUDA programs on it."""

import torch  # noqa: F401  (it loads `bringup.device.load`, which must not be half-imported by then)
