"""The settings of the caching allocator: read as torch reads them, and none ignored in silence."""

import subprocess
from collections.abc import Callable

import pytest

from bringup.device.allocator_settings import parse
from bringup.errors import AllocatorSettingsError
from tests.conftest import slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SHOW = """
import torch
first = torch.empty(30 << 20, dtype=torch.uint8, device="{device}")
print(torch.{device}.memory_reserved() >> 20)
"""


@pytest.mark.parametrize(
    ("text", "expandable", "ignored"),
    [
        ("", None, ()),
        ("expandable_segments:True", True, ()),
        (" expandable_segments : False , ", False, ()),
        ("max_split_size_mb:128,expandable_segments:True", True, ("max_split_size_mb",)),
        ("backend:native,release_lock_on_cudamalloc:False", None, ()),  # what the chip's allocator does in any case
        ("backend:cudaMallocAsync", None, ("backend",)),
        ("roundup_power2_divisions:[256:1,512:2,>:0],garbage_collection_threshold:0.8", None, None),
        ("roundup_power2_divisions:0", None, ()),
    ],
)
def test_settings_are_read(text: str, expandable: bool | None, ignored: tuple[str, ...] | None) -> None:
    settings = parse(text)
    assert settings.expandable_segments is expandable
    assert settings.ignored == (
        ("roundup_power2_divisions", "garbage_collection_threshold") if ignored is None else ignored
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("expandable_segments:true", "expected 'True' or 'False' for expandable_segments, got 'true'"),
        ("expandable_segments", "expected key:value pairs separated by commas, got 'expandable_segments'"),
        ("expandable_segments:True max_split_size_mb:64", "got 'expandable_segments:Truemax_split_size_mb:64'"),
        ("expandable_segment:True", "unrecognized key 'expandable_segment'"),
        ("max_split_size_mb:10", "a whole number of at least 20 for max_split_size_mb, got '10'"),
        ("max_split_size_mb:many", "got 'many'"),
        ("garbage_collection_threshold:1.5", "a number between 0 and 1"),
        ("garbage_collection_threshold:nan", "a number between 0 and 1"),
        ("backend:mine", "expected native or cudaMallocAsync for backend, got 'mine'"),
        ("roundup_power2_divisions:[256:3]", "a power of two of at least 0 for roundup_power2_divisions, got '3'"),
        ("roundup_power2_divisions:[256]", "expected entries such as 256:1 or >:4"),
        ("roundup_power2_divisions:[256:1", "expected key:value pairs"),
        ("pinned_num_register_threads:0", "a power of two of at least 1"),
    ],
)
def test_what_is_malformed_is_refused_in_one_sentence(text: str, problem: str) -> None:
    with pytest.raises(AllocatorSettingsError) as caught:
        parse(text)
    assert problem in str(caught.value) and isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", *slow("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")])
def test_the_environment_is_read(python: Run, name: str) -> None:
    done = python(SHOW.format(device="chip"), **{name: "expandable_segments:True"})
    assert done.stdout.split() == ["40"] and not done.stderr


def test_a_program_may_set_the_variable_until_it_uses_the_chip(python: Run) -> None:
    late = "import os, bringup\nbringup.use('t4')\nos.environ['PYTORCH_CUDA_ALLOC_CONF'] = 'expandable_segments:True'\n"
    done = python(late + SHOW.format(device="chip"))
    assert done.stdout.split() == ["40"] and not done.stderr


def test_the_newer_variable_counts_before_that_of_cuda(python: Run) -> None:
    done = python(
        SHOW.format(device="chip"),
        PYTORCH_ALLOC_CONF="expandable_segments:False",
        PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
    )
    assert done.stdout.split() == ["30"], done.stderr


def test_a_malformed_variable_is_named_at_the_first_use_of_the_chip(python: Run) -> None:
    done = python(SHOW.format(device="chip"), PYTORCH_CUDA_ALLOC_CONF="expandable_segments:1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "PYTORCH_CUDA_ALLOC_CONF: expected 'True' or 'False' for expandable_segments, got '1'"
    )


def test_settings_without_effect_are_named_once(python: Run) -> None:
    program = SHOW.format(device="chip") + "torch._C._accelerator_setAllocatorSettings('max_split_size_mb:64')\n"
    done = python(program, PYTORCH_ALLOC_CONF="max_split_size_mb:128,garbage_collection_threshold:0.8")
    assert done.stdout.split() == ["30"], done.stderr
    said = "PYTORCH_ALLOC_CONF: max_split_size_mb, garbage_collection_threshold have no effect on a chip"
    assert done.stderr.count("no effect") == 1 and said in done.stderr


def test_programs_that_say_cuda_set_it_as_with_cuda(python: Run) -> None:
    program = "import bringup, warnings\nbringup.redirect_cuda()\n" + SHOW.format(device="cuda")
    setting = """
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
second = torch.empty(30 << 20, dtype=torch.uint8, device="cuda")
print(torch.cuda.memory_reserved() >> 20)
print(sorted(segment["is_expandable"] for segment in torch.cuda.memory._snapshot()["segments"]))
try:
    torch._C._accelerator_setAllocatorSettings("expandable_segments:maybe")
except ValueError as error:
    print(error)
"""
    done = python(program + setting)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["30", "70", "[False, True]"], done.stderr
    assert lines[3] == "the allocator's settings: expected 'True' or 'False' for expandable_segments, got 'maybe'"
