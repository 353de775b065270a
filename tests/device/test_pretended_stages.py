"""Shapes that the stages of a pipeline leave for each other in files, which execute no code."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import _utils as utils
from torch.distributed.pipelining import stage as stages
from torch.distributed.tensor import Partial, Replicate, Shard

from bringup.device.pretended_stages import SHAPES, patch_stages

NEW = hasattr(stages.PipelineStage, "_recv_meta")  # since torch 2.13
pytestmark = pytest.mark.skipif(not NEW, reason="this torch exchanges shapes in another way")


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_shapes_of_a_stage_are_read_and_no_code_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed._mesh_layout import _FlatLayout, _MeshLayout

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SHAPES, str(tmp_path))
    kind: Any = stages.PipelineStage
    for name in ("_send_meta", "_recv_meta"):
        monkeypatch.setattr(kind, name, getattr(kind, name))  # so that they are put back
    patch_stages.__wrapped__()
    first, second = (SimpleNamespace(stage_index=i, _user_meta=SimpleNamespace(inputs=None)) for i in range(2))
    plain = utils._TensorMeta(torch.Size([2, 3]), (3, 1), torch.bfloat16, True)
    axes = _FlatLayout((2,), (2,)), _FlatLayout((2,), (1,))
    mesh: Any = {"mesh_dim_names": ("dp", "tp"), "mesh_layout": _MeshLayout(axes)}
    placements: Any = (Shard(0), Replicate(), Partial("sum"))
    parts = utils._DTensorMeta(*vars_of(plain), torch.Size([4, 3]), (3, 1), placements, **mesh)
    sent: Any = stages._StageForwardMeta((plain, parts))
    kind._send_meta(first, sent, 1)
    assert kind._recv_meta(second, 0) == sent
    torch.save(Harmful(), tmp_path / "into1")
    with pytest.raises(pickle.UnpicklingError):
        kind._recv_meta(second, 0)
    assert not (tmp_path / "harm").exists()


def vars_of(meta: Any) -> tuple[Any, ...]:
    return meta.shape, meta.stride, meta.dtype, meta.requires_grad
