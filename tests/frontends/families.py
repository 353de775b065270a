"""Small models of twelve families, as programs hand them over: exported by torch, or built from nodes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Family = tuple[nn.Module, tuple[torch.Tensor, ...]]


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.down = nn.Sequential(nn.Conv2d(channels, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.down(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Bottleneck(16, 8), Bottleneck(32, 16, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer2(self.layer1(self.pool(self.stem(x))))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depth, self.point = nn.Conv2d(16, 16, 5, 1, 2, groups=16), nn.Conv2d(16, 24, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.hardswish(self.depth(functional.hardswish(self.stem(x))))
        gate = functional.hardsigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(functional.relu6(self.point(y * gate)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = functional.leaky_relu(self.norm(self.down1(x)), 0.1)
        second = functional.leaky_relu(self.down2(functional.max_pool2d(first, 2)), 0.1)
        joined = torch.cat((first, self.up(second)), 1)
        return functional.interpolate(self.last(joined), scale_factor=2, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """A layer of a transformer: attention and a feed-forward part."""

    def __init__(self, size: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, size = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, size // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            scores = scores.masked_fill(~allowed, float("-inf"))
        if mask is not None:
            scores = scores + (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, size)
        x = x + self.out(y)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(50, 32), nn.Embedding(2, 32), nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Block(32, 4, causal=False) for _ in range(2))
        self.pooler = nn.Linear(32, 32)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.kinds(kinds) + self.places(places)
        for layer in self.layers:
            x = layer(x, mask)
        return torch.tanh(self.pooler(x[:, 0]))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Block(32, 4, causal=True) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return x @ self.words.weight.t()


class Llama(nn.Module):
    """Root-mean-square norms, rotary embeddings, gated feed-forward, grouped heads."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.scale = nn.Parameter(torch.rand(32) + 0.5)
        self.q, self.k, self.v = (
            nn.Linear(32, 32, bias=False),
            nn.Linear(32, 16, bias=False),
            nn.Linear(32, 16, bias=False),
        )
        self.gate, self.up = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * 0.1 ** torch.arange(4, device=x.device)
        cosine, sine = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        first, second = x.chunk(2, -1)
        return x * cosine + torch.cat((-second, first), -1) * sine

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (item[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for item in (self.rotate(k), v))
        scores = self.rotate(q) @ k.transpose(-2, -1) * 8**-0.5
        x = x + (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        y = self.norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32))
        self.places, self.layer, self.head = (
            nn.Parameter(torch.randn(1, 17, 32)),
            Block(32, 4, False),
            nn.Linear(32, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat((self.token.expand(x.shape[0], -1, -1), y), 1) + self.places
        return self.head(self.layer(y)[:, 0])


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.head(self.lstm(self.words(ids))[0]), -1)


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru, self.head = nn.Conv1d(20, 32, 5, 2, 2), nn.GRU(32, 24), nn.Linear(24, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.elu(self.conv(x)).permute(2, 0, 1)
        return self.head(self.gru(y)[0])


class Yolo(nn.Module):
    """A detection head: boxes on a grid, the best of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 21, 4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = functional.silu(self.conv(x))
        batch, _, height, width = y.shape
        y = torch.sigmoid(y.view(batch, 3, 7, height, width).permute(0, 1, 3, 4, 2))
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), -1).to(y)
        centre, size, rest = y.split((2, 2, 3), -1)
        boxes = torch.cat(((centre * 2 - 0.5 + grid) * 4, (size * 2) ** 2 * 8, rest), -1).flatten(1, 3)
        scores, order = (boxes[..., 4] * boxes[..., 5:].amax(-1)).topk(5)
        return boxes.gather(1, order[..., None].expand(-1, -1, 7)), scores


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 4, 3, padding=1)
        self.slope = nn.PReLU(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]
        return torch.clamp(functional.pixel_shuffle(self.conv2(self.slope(self.conv1(padded))), 2), -1, 1)


class Recommender(nn.Module):
    """Embeddings of categories, sums of powers, and a deep part."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.deep = nn.Embedding(100, 8), nn.Sequential(nn.Linear(44, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        pairs = 0.5 * (x.sum(1) ** 2 - (x**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(pairs + self.deep(torch.cat((x.flatten(1), numbers), 1)))


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 50, shape)


FAMILIES: dict[str, Callable[[], Family]] = {
    "resnet": lambda: (ResNet(), (torch.randn(2, 3, 64, 64),)),
    "mobilenet": lambda: (MobileNet(), (torch.randn(2, 3, 32, 32),)),
    "unet": lambda: (UNet(), (torch.randn(1, 1, 32, 32),)),
    "bert": lambda: (Bert(), (_ids(2, 12), (torch.rand(2, 12) > 0.3).long(), _ids(2, 12) % 2)),
    "gpt": lambda: (Gpt(), (_ids(2, 10),)),
    "llama": lambda: (Llama(), (_ids(2, 10),)),
    "vit": lambda: (Vit(), (torch.randn(2, 3, 32, 32),)),
    "tagger": lambda: (Tagger(), (_ids(2, 9),)),
    "speech": lambda: (Speech(), (torch.randn(2, 20, 40),)),
    "yolo": lambda: (Yolo(), (torch.randn(2, 3, 32, 32),)),
    "super_resolution": lambda: (SuperResolution(), (torch.randn(1, 1, 16, 16),)),
    "recommender": lambda: (Recommender(), (_ids(4, 5), torch.randn(4, 4))),
}


def make(name: str) -> Family:
    """Return a model of a family, in evaluation, with an example of its inputs."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    for module in model.modules():  # as after a training: statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval(), inputs


def export(name: str, path: Path, opset: int = 17, **options: Any) -> Family:
    """Write a family's model as ONNX; return it with its example inputs."""
    model, inputs = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        torch.onnx.export(model, inputs, str(path), opset_version=opset, dynamo=False, **options)
    return model, inputs
