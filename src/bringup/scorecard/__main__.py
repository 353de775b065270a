"""Runs one item in its own process: ``python -m bringup.scorecard --item A1 --device chip``."""

import argparse
import json

import torch

from bringup.device.load import use
from bringup.process import asked_devices
from bringup.scorecard.card import MARK
from bringup.scorecard.matrix import support
from bringup.scorecard.registry import load, run_item


def main() -> None:
    """Run the item and print its line of the scorecard."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--item")
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--device", required=True)
    parser.add_argument("--chip")
    parser.add_argument("--file", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.chip:
        use(arguments.chip, devices=asked_devices())
    device = torch.device(arguments.device)
    line = support(device) if arguments.matrix else run_item(load(tuple(arguments.file))[arguments.item], device)
    print(MARK + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
