"""ONNX's random numbers, and its operators on signals."""

from __future__ import annotations

import math
from typing import Any

import torch

from bringup.frontends.onnx.operators import Call, Tensor, operator, scalar
from bringup.frontends.onnx.tensors import torch_dtype


def _generator(call: Call) -> torch.Generator | None:
    seed = call("seed")
    return None if seed is None else torch.Generator(call.device).manual_seed(int(seed))


def _random(call: Call, sizes: list[int], dtype: torch.dtype, normal: bool) -> Tensor:
    maker: Any = torch.randn if normal else torch.rand
    values = maker(sizes, dtype=dtype, device=call.device, generator=_generator(call))
    if normal:
        return values * call("scale", 1.0) + call("mean", 0.0)
    low, high = call("low", 0.0), call("high", 1.0)
    return values * (high - low) + low


def _register() -> None:
    for name, normal in (("RandomNormal", True), ("RandomUniform", False)):
        operator(name, foldable=False)(
            lambda call, normal=normal: _random(call, call("shape"), torch_dtype(call("dtype", 1)), normal)
        )
        operator(f"{name}Like", foldable=False)(
            lambda call, x, normal=normal: _random(
                call, list(x.shape), torch_dtype(call("dtype")) if call("dtype") else x.dtype, normal
            )
        )


_register()


@operator("Bernoulli", foldable=False)
def bernoulli(call: Call, x: Tensor) -> Tensor:
    drawn = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=_generator(call)) < x
    return drawn.to(torch_dtype(call("dtype")) if call("dtype") else x.dtype)


@operator("Multinomial", foldable=False)
def multinomial(call: Call, x: Tensor) -> Tensor:
    drawn = torch.multinomial(torch.exp(x), call("sample_size", 1), True, generator=_generator(call))
    return drawn.to(torch_dtype(call("dtype", 6)))


@operator("DFT", host=(1, 2))
def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    along = call("axis", 1) if call.opset < 20 else -2 if axis is None else int(scalar(axis))
    if along < 0:
        along += x.dim()
    count = None if length is None else int(scalar(length))
    one_sided, inverse = call("onesided", 0), call("inverse", 0)
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if inverse and one_sided:
        whole = count or 2 * (x.shape[along] - 1)
        return torch.fft.irfft(values, whole, along).unsqueeze(-1)
    if one_sided:
        return torch.view_as_real(torch.fft.rfft(values, count, along))
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(values, count, along))


@operator("STFT", host=(1, 3))
def stft(call: Call, x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None) -> Tensor:
    signal = x.squeeze(-1) if x.dim() == 3 and x.shape[-1] == 1 else x
    if signal.dim() == 3:
        signal = torch.view_as_complex(signal.contiguous())
    size = int(scalar(length)) if length is not None else window.shape[0]  # type: ignore[union-attr]
    frames = signal.unfold(1, size, int(scalar(step)))
    frames = frames if window is None else frames * window
    one_sided = call("onesided", 1) and not signal.is_complex()
    return torch.view_as_real(torch.fft.rfft(frames) if one_sided else torch.fft.fft(frames))


def _window(call: Call, size: Tensor, parts: tuple[float, ...]) -> Tensor:
    count = int(scalar(size))
    dtype = torch_dtype(call("output_datatype", 1))
    places = torch.arange(count, device=call.device, dtype=torch.float32)
    turn = 2 * math.pi * places / (count if call("periodic", 1) else count - 1)
    total = torch.full_like(turn, parts[0])
    for order, part in enumerate(parts[1:], 1):
        total = total + (-1) ** order * part * torch.cos(order * turn)
    return total.to(dtype)


@operator("HannWindow", host=(0,), grows=True)
def hann_window(call: Call, size: Tensor) -> Tensor:
    return _window(call, size, (0.5, 0.5))


@operator("HammingWindow", host=(0,), grows=True)
def hamming_window(call: Call, size: Tensor) -> Tensor:
    return _window(call, size, (25 / 46, 21 / 46))  # the coefficients of ONNX's definition


@operator("BlackmanWindow", host=(0,), grows=True)
def blackman_window(call: Call, size: Tensor) -> Tensor:
    return _window(call, size, (0.42, 0.5, 0.08))  # the coefficients of ONNX's definition


@operator("MelWeightMatrix", host=(0, 1, 2, 3, 4), grows=True)
def mel_weight_matrix(call: Call, *numbers: Tensor) -> Tensor:
    bins, length, rate, low, high = (scalar(number) for number in numbers)
    spectrum = length // 2 + 1
    low_mel, high_mel = (2595 * math.log10(1 + edge / 700) for edge in (low, high))  # the mel scale of ONNX
    step = (high_mel - low_mel) / (bins + 2)
    device = call.device if call.device.type == "meta" else torch.device("cpu")
    mels = torch.arange(bins + 2, dtype=torch.float64, device=device) * step + low_mel
    hertz = 700 * (10 ** (mels / 2595) - 1)
    places = torch.floor((length + 1) * hertz / rate)
    rows = torch.arange(spectrum, dtype=torch.float64, device=device)[:, None]
    first, middle, last = places[:-2], places[1:-1], places[2:]
    table = torch.minimum((rows - first) / (middle - first), (last - rows) / (last - middle)).clamp(min=0)
    table = torch.where(rows == middle, 1.0, table)  # also where an edge of the triangle has no width
    return table.to(torch_dtype(call("output_datatype", 1))).to(call.device)
