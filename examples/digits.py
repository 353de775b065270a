"""Train a small network on scikit-learn's handwritten digits, on the chip."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1500], order[1500:]

    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 16, 10)),
    ).to("chip")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    print(f"device {torch.accelerator.current_accelerator()}: {torch.chip.get_device_name()}")
    for epoch in range(5):
        total = torch.zeros((), device="chip")
        for batch in torch.randperm(len(train)).split(50):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[train[batch]].to("chip")), y[train[batch]].to("chip"))
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        print(f"epoch {epoch}  loss {total.item() / len(train):.4f}")

    model.eval()
    with torch.no_grad():
        right = (model(x[test].to("chip")).argmax(1) == y[test].to("chip")).float().mean()
    print(f"accuracy on {len(test)} unseen digits: {right.item():.1%}\n")
    print(torch.chip.memory_summary(abbreviated=True))


if __name__ == "__main__":
    main()
