"""`redirect_cuda`: CUDA programs run on the chip.

Note [Two names]
The program sees one consistent name: its tensors' ``device`` is ``cuda:0``, ``is_cuda`` is true, and `torch.cuda`
describes the chip. Below torch's Python the device is ``chip``. Device arguments are translated at the points where
torch parses them: in `Tensor.to` and `Tensor.cuda`, in autocast and in generators. For factory functions the core
registers kernels under the dispatch key CUDA, which no tensor has. Nothing is patched before `redirect_cuda` is called.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch

from bringup.device import load
from bringup.device.cuda_distributed import patch_distributed
from bringup.device.cuda_functions import patch_cuda
from bringup.device.cuda_names import used
from bringup.device.cuda_tensors import patch_tensors
from bringup.device.cuda_torch import patch_amp, patch_files, patch_torch
from bringup.errors import BringupError
from bringup.process import FACTS, ON_REDIRECT, asked_driver, process

_settings: dict[str, Any] = {}  # values of the knobs before the program changed them

_KNOBS = {
    "backends.cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
        lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    ),
    "backends.cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "backends.cudnn.enabled": lambda: torch.backends.cudnn.enabled,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
}


def redirect_cuda() -> None:
    """Make the name ``cuda`` mean the chip in this process. Call it before the program is imported.

    Device properties come from the chip file. Features that only CUDA has (its driver, raw kernels, NCCL)
    raise an error that names the feature. The report lists the CUDA names that the program used.

    The CUDA devices of this machine are hidden from the program and from the processes that it starts.

    Raises:
        BringupError: the process has already asked CUDA for its devices.
    """
    if process.named_cuda:
        return
    if load.visible_gpus():
        _hide_gpus()
    load.register()
    process.named_cuda = True
    FACTS.append(lambda _: lambda: {"named_cuda": True, "redirected": report()})
    torch.ops.bringup.redirect_cuda()
    for name, knob in _KNOBS.items():
        _settings[name] = knob()
    patch_tensors()
    patch_torch()
    patch_amp()
    patch_files()
    patch_distributed()
    patch_cuda()
    for choose in ON_REDIRECT:
        choose()


def _hide_gpus() -> None:
    if asked_driver() == "cuda":
        raise BringupError(
            "cuda cannot mean the chip if the driver is cuda: the GPU would be hidden from the driver, too; let the "
            "program use the device 'chip' (torch.accelerator.current_accelerator()), or leave out --driver"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if torch.cuda.is_available():  # the first call in a process asks CUDA; later calls return the same
        if visible is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        raise BringupError(
            "cuda cannot mean the chip in a process that uses this machine's CUDA device already: call "
            "bringup.redirect_cuda() right after import torch, or hide the device with CUDA_VISIBLE_DEVICES="
        )


def report() -> dict[str, int]:
    """Return how often the program used each CUDA name. A setting that it changed counts once."""
    if not process.named_cuda:
        return {}
    counts = Counter(used)
    if factories := torch.ops.bringup.redirected():
        counts['device="cuda"'] = factories
    for name, knob in _KNOBS.items():
        try:
            value = knob()
        except RuntimeError:  # torch refuses to read a setting that was set by its old and its new name
            continue
        if value != _settings[name]:
            counts[f"{name} = {value}"] = 1
    return dict(sorted(counts.items()))
