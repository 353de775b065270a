"""Pipelines of ranks of which only one runs: the shapes that their stages would exchange before the first step.

A stage asks the one before for the shapes of its inputs. Where all stages are recorded, one after the other, each
leaves the shapes of its results in a folder. A gradient has the shape of the result. Reading them executes no code.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

from bringup.errors import BringupError

SHAPES = "BRINGUP_STAGE_SHAPES"  # the folder, in the environment of the processes that record stages


@functools.cache
def patch_stages() -> None:
    """Patch PipelineStage to take shapes from the folder, or from the arguments that the program gave it."""
    from torch.distributed.pipelining import stage as stages

    kind: Any = stages.PipelineStage
    module: Any = stages
    if not hasattr(kind, "_recv_meta"):  # torch before 2.13
        return
    latest: dict[str, Any] = {}  # what a stage of this rank has sent forward

    def send(self: Any, meta: Any, dst_stage: int) -> None:
        if dst_stage < self.stage_index:
            return
        latest["forward"] = meta
        if SHAPES in os.environ:
            torch.save(meta, Path(os.environ[SHAPES], f"into{dst_stage}"))

    def receive(self: Any, src_stage: int) -> Any:
        if src_stage > self.stage_index:
            return module._StageBackwardMeta(module._derive_grad_metas(self._stage_meta.outputs))
        if self._user_meta.inputs is not None:
            return module._StageForwardMeta(self._user_meta.inputs)
        path = Path(os.environ.get(SHAPES, os.devnull), f"into{self.stage_index}")
        if path.exists():
            with torch.serialization.safe_globals(_kinds(module)):
                return torch.load(path, weights_only=True)
        if "forward" in latest:  # an interleaved stage, whose inputs are those of the stages between
            return latest["forward"]
        raise BringupError(
            f"stage {self.stage_index} of the pipeline needs the shapes that stage {src_stage} sends: record all "
            "stages with --stages all, or give PipelineStage input_args and output_args"
        )

    kind._send_meta, kind._recv_meta = send, receive


def _kinds(stage: Any) -> list[Any]:
    """Return the classes of shapes, which torch.load may make."""
    from torch.distributed._mesh_layout import _FlatLayout, _MeshLayout
    from torch.distributed.pipelining import _utils as utils
    from torch.distributed.tensor import Partial, Replicate, Shard

    metas = [stage._StageForwardMeta, utils._TensorMeta, utils._DTensorMeta]
    return [*metas, _FlatLayout, _MeshLayout, Partial, Replicate, Shard]
