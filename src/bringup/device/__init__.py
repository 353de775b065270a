"""The PyTorch device `chip`: torch.chip, and CUDA programs that run on the chip."""

import torch  # noqa: F401  (it imports `bringup.device.load`, which must be complete before the other modules)
