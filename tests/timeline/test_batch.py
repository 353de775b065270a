"""The batch is named only if the launches of a step agree on it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bringup
from bringup.process import process


def batch(program: Callable[[], object]) -> int:
    with bringup.record() as trace:
        program()
        bringup.step()
    return int(bringup.price(trace, "t4").samples)


def test_tokens_and_heads_are_multiples_of_the_batch() -> None:
    words, places = nn.Embedding(16, 32).to("chip"), nn.Embedding(10, 32).to("chip")
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True).to("chip")
    head = nn.Linear(32, 16).to("chip")

    def program() -> None:
        x = torch.zeros(6, 10, dtype=torch.long, device="chip")
        hidden = places(torch.arange(10, device="chip")) + words(x)
        nn.functional.cross_entropy(head(layer(hidden)).flatten(0, 1), x.flatten()).backward()

    assert batch(program) == 6


def test_time_first_is_no_batch() -> None:
    model = nn.LSTM(8, 8).to("chip")
    assert batch(lambda: model(torch.ones(35, 20, 8, device="chip"))[0].square().mean().backward()) == 0


def test_acting_and_training_do_not_agree() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).to("chip")

    def program() -> None:
        with torch.no_grad():
            model(torch.ones(1, 4, device="chip"))
        model(torch.ones(128, 4, device="chip")).square().mean().backward()

    assert batch(program) == 0
    assert batch(lambda: model(torch.ones(128, 4, device="chip")).square().mean().backward()) == 128


def test_the_nodes_of_a_graph_are_no_batch() -> None:
    model = nn.Linear(16, 4).to("chip")
    edges = torch.eye(50, device="chip")
    assert batch(lambda: (edges @ model(torch.ones(50, 16, device="chip"))).square().mean().backward()) == 0
    labelled = torch.arange(20, device="chip")
    assert batch(lambda: model(torch.ones(50, 16, device="chip"))[labelled].square().mean().backward()) == 0


def test_the_points_of_a_kernel_matrix_are_no_batch() -> None:
    layer = nn.Linear(4, 8).to("chip")

    def program() -> None:
        features = layer(torch.ones(20, 4, device="chip"))
        covariance = features @ features.t() + 20 * torch.eye(20, device="chip")
        torch.linalg.cholesky(covariance).diagonal().log().sum().backward()

    assert batch(program) == 0
    assert batch(lambda: layer(torch.ones(20, 4, device="chip")).sum().backward()) == 20


def test_the_nodes_of_a_sparse_matrix_are_no_batch() -> None:
    layer = nn.Linear(4, 8).to("chip")
    matrix = torch.eye(20).to_sparse().to("chip")
    assert batch(lambda: torch.sparse.mm(matrix, layer(torch.ones(20, 4, device="chip"))).sum().backward()) == 0


def test_a_batch_of_one_product_has_its_rows() -> None:
    layer, codes = nn.Conv2d(1, 8, 3).to("chip"), torch.ones(1, 16, 8, device="chip")

    def program() -> None:
        rows = layer(torch.ones(6, 1, 5, 5, device="chip")).permute(0, 2, 3, 1).reshape(1, 54, 8)
        (rows @ codes.transpose(1, 2)).reshape(6, -1).square().mean().backward()

    assert batch(program) == 6


def test_a_square_layer_is_no_graph() -> None:
    model = nn.Linear(32, 32).to("chip")
    assert batch(lambda: model(torch.ones(32, 32, device="chip")).square().mean().backward()) == 32


def test_gradients_by_hand_have_no_batch() -> None:
    x, weight = torch.ones(64, 8, device="chip"), torch.ones(8, 4, device="chip")
    assert batch(lambda: x.t() @ (x @ weight)) == 0
    assert batch(lambda: x @ weight) == 64


def test_autocast_copies_weights_and_changes_no_batch() -> None:
    model = nn.Linear(32, 32).to("chip")

    def train(rows: int) -> None:
        with torch.autocast("chip", dtype=torch.bfloat16):
            model(torch.ones(rows, 32, device="chip")).float().square().mean().backward()

    def act() -> None:
        with torch.no_grad(), torch.autocast("chip", dtype=torch.bfloat16):
            model(torch.ones(1, 32, device="chip"))
        train(32)

    assert batch(lambda: train(32)) == 32
    assert batch(act) == 0


def test_recording_without_uses_is_priced() -> None:
    model, x = nn.Linear(4, 2).to("chip"), torch.ones(6, 4, device="chip")
    with bringup.record() as trace:
        for _ in range(3):
            model(x).relu().square().mean().backward()
            bringup.step()
    trace.uses, trace.offsets = trace.uses[:0], np.zeros_like(trace.offsets)
    assert bringup.price(trace, "t4").summary.step_seconds > 0


def batches(program: Callable[[], object]) -> tuple[int, int]:
    with bringup.record() as trace:
        for _ in range(3):
            program()
            bringup.step()
    summary = bringup.price(trace, "t4").summary
    return summary.samples, summary.batches


def test_accumulated_batches_are_counted() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to("chip")

    def train() -> None:
        model(torch.ones(8, 16, device="chip")).square().mean().backward()

    def accumulate() -> None:
        for _ in range(4):
            train()

    assert batches(train) == (8, 1) and batches(accumulate) == (8, 4)
    with torch.no_grad():
        assert batches(lambda: [model(torch.ones(8, 16, device="chip")) for _ in range(4)])[1] == 1


def test_passes_of_different_models_are_one_batch() -> None:
    maker, judge = nn.Linear(4, 16).to("chip"), nn.Linear(16, 1).to("chip")

    def adversarial() -> None:
        judge(torch.ones(8, 16, device="chip")).mean().backward()
        judge(maker(torch.ones(8, 4, device="chip"))).mean().backward()

    assert batches(adversarial)[1] == 1


def test_a_recurrent_layer_knows_its_batch_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = process.chosen_chip()
    ops = chip.ops.model_copy(update={"groups": {**chip.ops.groups, "rnn": ["float32"]}})
    monkeypatch.setattr(process, "chip", chip.model_copy(update={"ops": ops}))
    words, head = nn.Embedding(16, 8).to("chip"), nn.Linear(8, 16).to("chip")
    for batch_first in (False, True):
        layer = nn.GRU(8, 8, batch_first=batch_first).to("chip")
        shape = (6, 35) if batch_first else (35, 6)

        def program(layer: nn.GRU = layer, shape: tuple[int, int] = shape) -> None:
            x = torch.zeros(shape, dtype=torch.long, device="chip")
            nn.functional.cross_entropy(head(layer(words(x))[0]).flatten(0, 1), x.flatten()).backward()

        assert batch(program) == 6


def test_the_loss_of_a_recurrent_layer_may_have_time_first(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = process.chosen_chip()
    ops = chip.ops.model_copy(update={"groups": {**chip.ops.groups, "rnn": ["float32"]}})
    monkeypatch.setattr(process, "chip", chip.model_copy(update={"ops": ops}))
    layer = nn.GRU(8, 8).to("chip")
    assert batch(lambda: layer(torch.ones(35, 20, 8, device="chip"))[0].square().mean().backward()) == 20


def test_a_convolution_names_the_batch_after_a_product_of_frames() -> None:
    mel, conv = torch.ones(21, 8, device="chip"), nn.Conv1d(8, 4, 3).to("chip")

    def program() -> None:
        conv((torch.ones(6, 10, 21, device="chip") @ mel).transpose(1, 2)).square().mean().backward()

    assert batch(program) == 6


def test_samples_that_come_one_by_one_are_no_batch_of_one() -> None:
    policy = nn.Linear(4, 2).to("chip")

    def episode() -> None:
        torch.stack([policy(torch.ones(1, 4, device="chip")).sum() for _ in range(20)]).sum().backward()

    assert batch(episode) == 0
    assert batch(lambda: policy(torch.ones(1, 4, device="chip")).sum().backward()) == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_a_checkpoint_rebuilds_is_no_batch_of_its_own(use_reentrant: bool) -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)).to("chip")

    def accumulate() -> None:
        for _ in range(2):
            x = torch.ones(8, 16, device="chip", requires_grad=True)
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=use_reentrant)
            x.square().mean().backward()

    assert batches(accumulate) == (8, 2)


def test_packed_sequences_have_no_batch_axis() -> None:
    layer = nn.GRU(8, 8).to("chip")
    packed = nn.utils.rnn.pack_padded_sequence(torch.ones(5, 3, 8), torch.tensor([5, 4, 2])).to("chip")
    assert batch(lambda: layer(packed)) == 0


def test_samples_times_heads_are_no_batch() -> None:
    query = torch.ones(4, 8, 16, 32, device="chip")
    assert batch(lambda: (query @ query.transpose(-1, -2)).softmax(-1) @ query) == 4
    one = torch.ones(1, 4, 16, 32, device="chip")
    assert batch(lambda: (one @ one.transpose(-1, -2)).softmax(-1)) == 1
    folded = torch.ones(32, 16, 16, device="chip")
    assert batch(lambda: (folded @ folded).softmax(-1)) == 0, "samples, or samples times heads"


def test_rows_of_tokens_are_no_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).to("chip")
    assert batch(lambda: model(torch.ones(6, 10, 8, device="chip"))) == 0
    assert batch(lambda: model(torch.ones(60, 8, device="chip"))) == 60


def test_a_convolution_names_the_batch_beside_attention() -> None:
    patches, query = nn.Conv2d(3, 32, 4, 4).to("chip"), nn.Linear(32, 32).to("chip")

    def program() -> None:
        tokens = patches(torch.ones(6, 3, 16, 16, device="chip")).flatten(2).transpose(1, 2)
        heads = query(tokens).unflatten(-1, (4, 8)).transpose(1, 2)
        (heads @ heads.transpose(-1, -2)).softmax(-1).square().mean().backward()

    assert batch(program) == 6
