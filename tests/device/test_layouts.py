"""The layouts of results are those of torch's kernels, whatever was called before and whether anything is computed."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import bringup

SHAPES = [(4, 64, 64), (4, 96, 96), (8, 128, 128), (4, 64, 64)]  # larger than what a trial takes as it is


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(64, 96, 1, bias=False),
        nn.Conv2d(96, 96, 5, padding=2, groups=96),
        nn.Conv2d(96, 128, 3, groups=32),
        nn.ConvTranspose2d(128, 64, 3, groups=16),
        nn.AdaptiveAvgPool2d(4),
    )


def strides(device: str, memory_format: torch.memory_format) -> list[tuple[int, ...]]:
    """Of every layer's results and of its weight's gradient."""
    model = network().to(device=device, memory_format=memory_format)
    found = []
    for batch, height, width in SHAPES:
        layers = [torch.randn(batch, 3, height, width, device=device).contiguous(memory_format=memory_format)]
        for layer in model:
            layers.append(layer(layers[-1]))
        weights = [layer.weight for layer in model if isinstance(layer, nn.modules.conv._ConvNd)]
        gradients = torch.autograd.grad(layers[-1].sum(), weights)
        found += [tensor.stride() for tensor in (*layers, *gradients)]
    return found


@pytest.mark.parametrize("formats", ["contiguous channels_last", "channels_last contiguous"])
@pytest.mark.parametrize("dry", [False, True], ids=["computed", "dry"])
def test_layouts_of_convolutions_do_not_depend_on_earlier_calls(formats: str, dry: bool) -> None:
    for name in formats.split():
        memory_format = getattr(torch, "contiguous_format" if name == "contiguous" else name)
        expected = strides("cpu", memory_format)
        with warnings.catch_warnings(), bringup.dry() if dry else nullcontext():
            warnings.simplefilter("ignore", bringup.DryWarning)
            assert strides("chip", memory_format) == expected
