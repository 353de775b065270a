"""The time of a DataLoader's batches is measured if the chip uses them, in the program or in the loader's workers."""

import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import bringup

SLEEP = 2e-3


class Slow(Dataset[torch.Tensor]):
    """Eight batches of four samples that take SLEEP seconds each."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(SLEEP)
        return torch.full((4,), float(index))


def inputs(loader: "DataLoader[torch.Tensor]", *, on_chip: bool = True) -> list[dict[str, Any]]:
    weight = torch.ones(4, 4, device="chip")
    with bringup.record() as trace:
        for batch in loader:  # here
            if on_chip:
                (batch.to("chip") @ weight).sum()
                bringup.step()
    result: list[dict[str, Any]] = trace.about.get("inputs", [])
    return result


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_has_the_time_that_one_process_takes_for_it(workers: int) -> None:
    (item,) = inputs(DataLoader(Slow(), batch_size=4, num_workers=workers))
    assert item["workers"] == workers and item["batches"] == 8
    assert item["batch_seconds"] >= 4 * SLEEP
    with open(__file__, encoding="utf-8") as file:
        here = next(number for number, line in enumerate(file, 1) if line.rstrip().endswith("# here"))
    assert item["line"] == f"tests/recording/test_inputs.py:{here}"


def test_batches_that_the_chip_never_sees_do_not_count() -> None:
    assert inputs(DataLoader(Slow(), batch_size=4), on_chip=False) == []


def test_loaders_are_as_before_when_the_recording_ends() -> None:
    from torch.utils.data import dataloader
    from torch.utils.data._utils import fetch

    classes = (dataloader._BaseDataLoaderIter, dataloader._MultiProcessingDataLoaderIter, fetch._MapDatasetFetcher)
    before = [dict(vars(item)) for item in classes]
    inputs(DataLoader(Slow(), batch_size=16))
    assert [dict(vars(item)) for item in classes] == before
