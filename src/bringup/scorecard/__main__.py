"""Runs one item in its own process: ``python -m bringup.scorecard --item A1 --device chip``."""

import argparse
import json
from typing import Any

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
    parser.add_argument("--framework", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--chip")
    parser.add_argument("--file", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.chip:
        use(arguments.chip, devices=asked_devices())
    device = _device(arguments.framework, arguments.device)
    items = load(tuple(arguments.file), arguments.framework)
    line = support(device) if arguments.matrix else run_item(items[arguments.item], device)
    print(MARK + json.dumps(line), flush=True)


def _device(framework: str, name: str) -> Any:
    """Return a framework's device. TensorFlow's functions run on the chip if it is named."""
    if framework == "jax":
        import jax

        return jax.devices(name)[0]
    if framework == "tensorflow":
        from bringup.frontends.tensorflow import hook

        if name == "chip":
            hook.watch_import()
        return name
    return torch.device(name)


if __name__ == "__main__":
    main()
