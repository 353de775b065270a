"""The time of a DataLoader's batches is measured if the chip uses them, in the program or in the loader's workers."""

import itertools
import os
import sysconfig
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

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
    assert item["workers"] == workers and len(item["rows"]) == 8 and item["rows"] == sorted(set(item["rows"]))
    assert item["batch_seconds"] >= 4 * SLEEP
    assert item["line"] == line_of("here")


def test_batches_that_the_chip_never_sees_do_not_count() -> None:
    assert inputs(DataLoader(Slow(), batch_size=4), on_chip=False) == []


def test_loaders_are_as_before_when_the_recording_ends() -> None:
    from torch.utils.data import dataloader
    from torch.utils.data._utils import fetch

    classes = (
        DataLoader,
        dataloader._BaseDataLoaderIter,
        dataloader._MultiProcessingDataLoaderIter,
        fetch._MapDatasetFetcher,
    )
    before = [dict(vars(item)) for item in classes]
    inputs(DataLoader(Slow(), batch_size=16))
    assert [dict(vars(item)) for item in classes] == before


class Named(DataLoader[torch.Tensor]):
    def __init__(self, **options: int) -> None:
        super().__init__(Slow(), **options)  # type: ignore[arg-type]


def line_of(marker: str) -> str:
    with open(__file__, encoding="utf-8") as file:
        number = next(number for number, line in enumerate(file, 1) if line.rstrip().endswith(f"# {marker}"))
    return f"tests/recording/test_inputs.py:{number}"


def test_a_loader_has_the_line_that_makes_it() -> None:
    weight = torch.ones(4, 4, device="chip")
    with bringup.record() as trace:
        for batch in Named(batch_size=16):  # made at this line
            (batch.to("chip") @ weight).sum()
    (item,) = trace.about["inputs"]
    assert item["maker"] == line_of("made at this line") and not item["by_library"]


def test_a_librarys_loader_is_told_apart() -> None:
    weight = torch.ones(4, 4, device="chip")
    library: dict[str, Any] = {"DataLoader": DataLoader}
    code = "def make(data):\n    return DataLoader(data, batch_size=16)\n"
    exec(compile(code, os.path.join(sysconfig.get_path("purelib"), "fit.py"), "exec"), library)
    with bringup.record() as trace:
        for batch in library["make"](Slow()):
            (batch.to("chip") @ weight).sum()
    (item,) = trace.about["inputs"]
    assert item["maker"].endswith("fit.py:2") and item["by_library"]


def test_a_stream_is_told_apart() -> None:
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return (torch.ones(4) for _ in range(32))

    (stream,) = inputs(DataLoader(Stream(), batch_size=8))
    (by_index,) = inputs(DataLoader(Slow(), batch_size=8))
    assert stream["iterable"] and "iterable" not in by_index


def test_two_loaders_of_one_loop_are_told_apart() -> None:
    weight = torch.ones(4, 4, device="chip")
    loaders = [DataLoader(Slow(), batch_size=16), DataLoader(Slow(), batch_size=8)]
    with bringup.record() as trace:
        for batch in itertools.chain(*loaders):
            (batch.to("chip") @ weight).sum()
    assert sorted(len(item["rows"]) for item in trace.about["inputs"]) == [2, 4]
