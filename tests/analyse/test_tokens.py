"""Tokens of a step: those of the embedding, divided among the ranks that share them."""

from __future__ import annotations

import pytest
import torch

import bringup
from bringup.report import lines
from tests.analyse.test_layout_advice import all_reduce


@pytest.mark.parametrize("sharing", [1, 8])
def test_tokens_are_those_of_the_embedding(sharing: int) -> None:
    with bringup.dry(), bringup.record() as trace:
        tokens, positions = (torch.zeros(2, size, device="chip", dtype=torch.int64) for size in (512, 1))
        words, places = (torch.nn.Embedding(100, 64, device="chip") for _ in range(2))
        x = words(tokens) + places(positions)
        if sharing > 1:
            all_reduce(x, x.nbytes, size=sharing)
        all_reduce(torch.empty(1, device="chip"), 4)  # a loss for the log
    trace.about.update(ranks=16)
    summary = bringup.price(trace, "h100-sxm", cluster="dgx-h100x2").summary
    assert (summary.tokens, summary.sharing_ranks) == (1024, sharing)
    assert summary.cluster_tokens_per_second == pytest.approx(1024 * 16 / sharing / summary.step_seconds)
    assert "tokens/s per chip" in "\n".join(line.text for line in lines.lines(summary))


def test_programs_without_a_batch_of_sequences_have_no_tokens() -> None:
    with bringup.dry(), bringup.record() as trace:
        torch.nn.Embedding(100, 64, device="chip")(torch.zeros(512, device="chip", dtype=torch.int64))
    assert bringup.price(trace, "h100-sxm").summary.tokens_per_second is None
