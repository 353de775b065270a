"""torch.profiler under a recording."""

import numpy as np
import pytest
import torch

import bringup
from bringup.recording.rows import H2D, LAUNCH
from bringup.timeline.replay import replay

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # torch 2.10 and 2.12


def test_profile_under_a_recording_shows_the_predicted_times() -> None:
    x, host = torch.ones(256, 256, device="chip"), torch.ones(256, 256)
    with bringup.record() as trace:
        x + x  # before the profile
        with torch.profiler.profile() as profile:
            y = (x @ x).relu()
            host.to("chip")
            torch.chip.synchronize()
    assert y.shape == (256, 256)
    rows = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.PrivateUse1]
    assert [row.name for row in rows] == ["aten::mm", "aten::relu", "Memcpy HtoD"]
    timeline = replay(trace, bringup.load_chip("edge8"), bringup.load_host())
    numbers = np.flatnonzero(np.isin(trace.columns["kind"], [LAUNCH, H2D]))[1:]
    seconds = (timeline.end - timeline.start)[numbers]
    assert [row.device_time_total for row in rows] == pytest.approx(list(seconds * 1e6), abs=2e-3)  # whole nanoseconds
    begin = timeline.start[numbers] - timeline.start[numbers[0]]
    shown = [row.time_range.start - rows[0].time_range.start for row in rows]
    assert shown == pytest.approx(list(begin * 1e6), abs=2e-3)
    averages = {row.key: row for row in profile.key_averages()}
    assert averages["aten::matmul"].device_time_total == rows[0].device_time_total


def test_predicted_times_may_be_longer_than_the_emulation() -> None:
    with bringup.dry():
        x = torch.empty(8192, 8192, device="chip")
        with bringup.record(), torch.profiler.profile() as profile:
            x @ x
            torch.chip.synchronize()
    (row,) = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.PrivateUse1)
    assert row.device_time_total > 1e5  # microseconds; 1.1e12 flop


def test_profile_without_a_recording_shows_the_emulation() -> None:
    x = torch.ones(64, 64, device="chip")
    torch.chip.synchronize()
    with torch.profiler.profile() as profile:
        x @ x
        with bringup.record():
            x + x
        torch.chip.synchronize()
    rows = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.PrivateUse1]
    assert [row.name for row in rows] == ["aten::mm", "aten::add.Tensor"]
