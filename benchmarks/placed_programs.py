"""The programs on which placement is tested and measured, at full size for dry runs, or small enough to compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from models import ResNet18
from torch import nn
from torch.nn import functional

import bringup

Step = Callable[[], torch.Tensor]
# What the detector's chip leaves to the host.
DETECTOR_ON_HOST = ["aten::sort", "aten::topk", "aten::cumsum", "aten::prod"]


class Recommender(nn.Module):
    """Naumov et al. 2019 (DLRM): tables of categories beside a network of features, and their products in pairs."""

    def __init__(self, rows: int, tables: int = 26, width: int = 64) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(
            nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, width)
        )
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(
            nn.Linear(pairs + width, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
        )

    def forward(self, dense: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Score a batch of (N, 13) features and (N, tables, looked up) rows."""
        looked_up = [table(indices[:, place]) for place, table in enumerate(self.tables)]
        x = torch.stack([self.bottom(dense), *looked_up], 1)
        products = x @ x.transpose(1, 2)
        i, j = torch.tril_indices(len(self.tables) + 1, len(self.tables) + 1, -1, device=x.device)
        return self.top(torch.cat([x[:, 0], products[:, i, j]], 1))


class Pictures(nn.Module):
    """A network of images with its preprocessing: resize, random flip, normalization by the image."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ResNet18()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images of bytes, (N, 3, H, W)."""
        x = functional.interpolate(images.float() / 255, size=(224, 224), mode="bicubic", antialias=False)
        x = torch.where(torch.rand(x.shape[0], 1, 1, 1, device=x.device) > 0.5, x.flip(-1), x)
        return self.model((x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5))


class Detector(nn.Module):
    """Boxes and their suppression: sorts, gathers and a loop, which many chips leave to the host."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv2d(3 if i == 0 else 64, 64, 3, 2 if i < 3 else 1, 1), nn.BatchNorm2d(64), nn.SiLU())
            for i in range(8)
        ]
        self.features = nn.Sequential(*layers)
        self.classes, self.boxes = nn.Conv2d(64, 80, 1), nn.Conv2d(64, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of 300 boxes per image."""
        x = self.features(images)
        scores, _ = self.classes(x).flatten(2).sigmoid().max(1)
        boxes = self.boxes(x).flatten(2)
        top, places = scores.topk(300, 1)
        boxes = boxes.gather(2, places[:, None].expand(-1, 4, -1)).transpose(1, 2).cumsum(1).sort(1)[0]
        for _ in range(6):
            low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
            high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
            overlap = (high - low).clamp(min=0).prod(-1)
            apart = (overlap.triu(1).amax(1) < 0.5).float()
            top, order = (top * apart).sort(1, descending=True)
            boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return top


class Layer(nn.Module):
    """A layer of a decoder with a cache (Touvron et al. 2023)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int) -> torch.Tensor:
        """Map (N, T, width) to the same shape; `keys` and `values` are (N, heads, length, width / heads)."""
        batch, count, width = x.shape
        end = position + count
        y = self.norm1(x)
        q, k, v = (map_(y).view(batch, count, self.heads, -1).transpose(1, 2) for map_ in (self.q, self.k, self.v))
        keys[:, :, position:end] = k
        values[:, :, position:end] = v
        y = functional.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])
        x = x + self.o(y.transpose(1, 2).reshape(batch, count, width))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A stack of layers between an embedding and its product."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def caches(self, batch: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return empty keys and values of every layer."""
        width, heads, like = self.embed.embedding_dim, self.layers[0].heads, self.head.weight
        shape = (batch, heads, length, width // heads)
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def forward(
        self, words: torch.Tensor, caches: list[tuple[torch.Tensor, torch.Tensor]], position: int
    ) -> torch.Tensor:
        """Return the next word's scores."""
        x = self.embed(words)
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            x = layer(x, keys, values, position)
        return self.head(self.norm(x[:, -1:]))


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Step:
    def run() -> torch.Tensor:
        with torch.enable_grad():
            value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        return value.detach().cpu()

    return run


def mlp(small: bool) -> Step:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    x, y = torch.randn(8, 64), torch.zeros(8, dtype=torch.long)
    return _trained(model, optimizer, lambda: functional.cross_entropy(model(x.to("chip")), y.to("chip")))


def lstm(small: bool) -> Step:
    model, head = nn.LSTMCell(64, 64).to("chip"), nn.Linear(64, 8).to("chip")
    x = torch.randn(8 if small else 32, 1, 64)

    def run() -> torch.Tensor:
        state = None
        for item in x.to("chip"):
            state = model(item, state)
        return head(state[0]).cpu()  # type: ignore[index]

    return run


def dlrm(small: bool) -> Step:
    rows, batch = (2_000, 256) if small else (4_000_000, 2048)
    with torch.device("chip"):  # nothing is on the host, where a dry run would need memory
        model = Recommender(rows).eval()
    dense, indices = torch.randn(batch, 13), torch.randint(0, rows, (batch, 26, 20))
    return lambda: model(dense.to("chip"), indices.to("chip")).cpu()


def resnet(small: bool) -> Step:
    model = Pictures().to("chip").eval()
    shape = (2, 3, 120, 160) if small else (16, 3, 720, 1280)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return lambda: model(images.to("chip")).cpu()


def detector(small: bool) -> Step:
    model = Detector().to("chip").eval()
    images = torch.randn(1, 3, *((160, 160) if small else (320, 320)))
    return lambda: model(images.to("chip")).cpu()


def t5(small: bool) -> Step:
    from transformers import T5Config, T5ForConditionalGeneration

    layers = 2 if small else 6
    config = T5Config(d_model=512, d_ff=2048, num_layers=layers, num_heads=8, decoder_start_token_id=0)
    with torch.device("chip"):
        model = T5ForConditionalGeneration(config).eval()
    x, y = torch.randint(0, 32_000, (1, 64)), torch.randint(0, 32_000, (1, 16))
    return lambda: model(input_ids=x.to("chip"), labels=y.to("chip")).loss.cpu()


def llm(small: bool) -> Step:
    sizes = (4, 256, 4, 512, 1000) if small else (40, 5120, 40, 13824, 32_000)  # the latter of Llama 13B
    length = 64 if small else 2048
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if small else torch.bfloat16)
    with torch.device("chip"):
        model = Decoder(*sizes).eval()
    torch.set_default_dtype(before)
    caches = model.caches(1, length)
    word = torch.zeros(1, 1, dtype=torch.long)
    return lambda: model(word.to("chip"), caches, length // 2).cpu()


def gpt(small: bool) -> Step:
    sizes = (2, 64, 2, 128, 500) if small else (12, 768, 12, 3072, 50_257)
    batch, length = (2, 16) if small else (2, 128)
    with torch.device("chip"):
        model = Decoder(*sizes)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    words = torch.randint(0, sizes[-1], (batch, length))

    def loss() -> torch.Tensor:
        x = words.to("chip")
        return functional.cross_entropy(model(x, model.caches(batch, length), 0)[:, -1], x[:, 0])

    return _trained(model, optimizer, loss)


PROGRAMS: dict[str, Callable[[bool], Step]] = {
    "mlp": mlp,
    "lstm": lstm,
    "dlrm": dlrm,
    "resnet": resnet,
    "detector": detector,
    "t5": t5,
    "llm": llm,
    "gpt": gpt,
}


def chip_for(program: str, chip: str) -> bringup.Chip:
    """Return a chip; for the detector, one that lacks sorts and sums along a dimension."""
    described = bringup.load_chip(chip)
    if program != "detector":
        return described
    return described.model_copy(update={"ops": described.ops.model_copy(update={"host": DETECTOR_ON_HOST})})


def recorded(program: str, steps: int = 3, inside: int = 1) -> bringup.Trace:
    """Record a program dry at full size; a step of the recording is so many of the program."""
    with bringup.dry(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", bringup.DryWarning)
        run = PROGRAMS[program](False)
        with bringup.record() as trace:
            for _ in range(steps):
                for _ in range(inside):
                    run()
                bringup.step()
            torch.chip.synchronize()
    return trace
