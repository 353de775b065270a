"""Scores users by embedding tables beside a small network: the tables belong on the host, the network on the chip.

    bringup run --chip h100-sxm examples/recommend.py
    bringup place bringup-recommend
    bringup run --chip h100-sxm --place bringup-recommend/plan.toml examples/recommend.py

The program is the same in both runs, and so are its scores.
"""

import torch
from torch import nn

TABLES, ROWS, WIDTH, BATCH, LOOKED_UP = 26, 20_000, 64, 2048, 20


class Recommender(nn.Module):
    """Sums rows of every table, and scores them together with what is known of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(TABLES))
        self.user = nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, WIDTH))
        self.score = nn.Sequential(nn.Linear(WIDTH * (TABLES + 1), 1024), nn.ReLU(), nn.Linear(1024, 1))

    def forward(self, features: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return one score per user."""
        looked_up = [table(items[:, place]) for place, table in enumerate(self.tables)]
        return self.score(torch.cat([self.user(features), *looked_up], 1))


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = Recommender().to(device).eval()
    features, items = torch.randn(BATCH, 13), torch.randint(ROWS, (BATCH, TABLES, LOOKED_UP))
    with torch.no_grad():
        for _ in range(4):
            scores = model(features.to(device), items.to(device)).cpu()
    print(f"mean score {scores.mean():.6f}, highest {scores.max():.6f}")


if __name__ == "__main__":
    main()
