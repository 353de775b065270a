"""Ways to fit can be taken: whole numbers of smaller batches, and a shorter dtype only for what is float32."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.analyse import holders, ways_to_fit
from bringup.recording.rows import GRADIENTS, INPUTS, OPTIMIZER_STATE, PARAMETERS


def train(batch: int, autocast: bool) -> bringup.Prediction:
    with bringup.dry():
        model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.GELU()))).to("chip")
        optimizer = torch.optim.Adam(model.parameters())
        with bringup.record() as trace:
            for _ in range(3):
                data = torch.ones(batch, 128, device="chip")
                with torch.autocast("chip", dtype=torch.bfloat16) if autocast else nullcontext():
                    loss = model(data).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return bringup.price(trace, "a100-sxm-80")


@pytest.mark.parametrize("autocast", [False, True])
def test_the_model_in_half_precision_halves_what_is_float32(autocast: bool) -> None:
    prediction = train(4096, autocast)
    storages = holders.storages(prediction.timeline.trace, 0)
    (change,) = ways_to_fit._half(prediction.timeline, prediction.summary, storages)
    kinds = np.isin(storages.kind, (PARAMETERS, GRADIENTS, OPTIMIZER_STATE)) if autocast else storages.kind != INPUTS
    assert np.array_equal(change.scale == 0.5, kinds) and 0 < kinds.sum() < len(kinds)


def test_a_smaller_batch_is_a_whole_part_of_the_batch() -> None:
    prediction = train(96, False)
    storages = holders.storages(prediction.timeline.trace, 0)
    room = prediction.timeline.chip.room_bytes
    seen = set()
    for share in (0.95, 0.8, 0.6, 0.45):
        need = int(storages.peak(np.ones(len(storages.kind))) * share)
        (change,) = ways_to_fit._smaller_batch(prediction.timeline, prediction.summary, storages, room - need)
        size, times = int(change.text.split()[1]), int(change.text.split("of ")[-1].split()[0])
        assert size * times == 96 and storages.peak(change.scale) <= max(need, storages.peak(change.scale))
        seen.add(size)
    assert len(seen) > 1
