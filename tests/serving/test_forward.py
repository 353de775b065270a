"""Recorded forward passes: what a step holds, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.serving.forward import ForwardSteps, Recorded, built, has_tokens, load, record_batches, record_forward
from bringup.serving.steps import Chunk

LAYERS, WIDTH, HEADS, PAIRS, DEEP, WORDS = 2, 512, 8, 2, 64, 1000


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 1024, "num_hidden_layers": LAYERS},
        **{"num_attention_heads": HEADS, "num_key_value_heads": PAIRS, "max_position_embeddings": 1024},
    )
    return transformers.LlamaForCausalLM(config)


class Small(nn.Module):
    """A layer of attention, with an example of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inside, self.out = (
            nn.Embedding(WORDS, WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WORDS),
        )

    def example(self, batch: int, tokens: int) -> torch.Tensor:
        return torch.zeros(batch, tokens, dtype=torch.int64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = self.inside(self.words(tokens)).unflatten(-1, (3, HEADS, DEEP)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=tokens.shape[1] > 1)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2)[:, -1])
        return out


class Picture(nn.Module):
    """A program without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def example(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 3, 32, 32)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layer(pictures)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return record_forward(built(llama), 64, 8)


def table(recorded: Recorded, chip: str = "h100-sxm", chips: int = 1) -> ForwardSteps:
    return ForwardSteps(recorded, load_chip(chip), load_host(None), chips)


def test_a_float32_model_is_served_in_bfloat16(recorded: Recorded) -> None:
    parameters = sum(parameter.numel() for parameter in llama().parameters())
    assert recorded.weight_bytes == pytest.approx(2 * parameters, rel=0.001)
    assert next(built(llama, "float32").parameters()).dtype == torch.float32


def test_a_token_takes_its_keys_and_values(recorded: Recorded) -> None:
    assert recorded.token_bytes() == LAYERS * 2 * PAIRS * DEEP * 2
    per_chip = [recorded.token_bytes(chips) for chips in (2, 3, 8)]  # two heads, so further chips have copies
    assert per_chip == [LAYERS * 2 * DEEP * 2] * 3
    assert [layers for _, layers in recorded.attention] == [LAYERS]


def test_a_step_streams_weights_once_and_every_cache(recorded: Recorded) -> None:
    steps = table(recorded)
    context = 10_000_000  # tokens, so that little else counts
    bandwidth = load_chip("h100-sxm").memory.bandwidth_gb_s * 1e9
    streamed = steps.seconds([], 8, context) - steps.seconds([], 8, 0)
    assert context * recorded.token_bytes() / bandwidth < streamed < 1.6 * context * recorded.token_bytes() / bandwidth
    assert steps.seconds([], 8, 0) < 2 * steps.seconds([], 1, 0)


def test_cached_tokens_are_read_and_not_copied(recorded: Recorded) -> None:
    """No cache goes through the recorded forward pass: each key of a decode step is that of the new token."""
    keys = [item.tensor("key") for trace in recorded.decodes.values() for item in trace.signatures]
    assert {key.shape[-2] for key in keys if key is not None} == {1}


def test_a_chunk_attends_to_what_is_cached(recorded: Recorded) -> None:
    steps = table(recorded)
    assert steps.seconds([Chunk(64, 8192, True)], 0, 0) > steps.seconds([Chunk(64, 0, True)], 0, 0)
    assert steps.seconds([Chunk(64, 0, False)], 0, 0) <= steps.seconds([Chunk(64, 0, True)], 0, 0)


def test_runs_equal_single_steps(recorded: Recorded) -> None:
    steps = table(recorded)
    contexts = np.arange(80, 400, 8)
    single = [steps.seconds([], 8, int(context)) for context in contexts]
    np.testing.assert_allclose(steps.decode_seconds(8, contexts), single)


def test_projections_of_one_input_are_one_product(recorded: Recorded) -> None:
    """A model that has one projection in place of three takes as long."""
    merged = record_forward(built(Small), 64, 8)

    class Apart(Small):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            data = self.words(tokens)
            parts = [part(data).unflatten(-1, (HEADS, DEEP)).transpose(1, 2) for part in self.parts]
            mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=tokens.shape[1] > 1)
            out: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2)[:, -1])
            return out

    apart = record_forward(built(Apart), 64, 8)
    seconds = [table(item).seconds([], 8, 800) for item in (merged, apart)]
    assert seconds[1] == pytest.approx(seconds[0], rel=0.02)


def test_more_chips_share_products_and_add_collectives(recorded: Recorded) -> None:
    alone, shared = table(recorded), table(recorded, chips=2)
    (attention, _), *others = recorded.attention
    assert not others and attention.required("key").shape[1] == PAIRS
    context = 10_000_000
    assert shared.decode_seconds(8, np.asarray([context]))[0] < alone.decode_seconds(8, np.asarray([context]))[0]
    assert shared.seconds([], 1, 10) > alone.seconds([], 1, 10)  # so small a model loses more than it gains


def test_heads_that_do_not_divide_evenly_are_rounded_up(recorded: Recorded) -> None:
    """Of eight heads, one of five chips has two, as each of four has."""
    context = np.asarray([10_000_000])
    four, five = (table(recorded, chips=chips) for chips in (4, 5))
    streamed = [steps.decode_seconds(8, context)[0] - steps.decode_seconds(8, context * 0)[0] for steps in (four, five)]
    assert streamed[1] == pytest.approx(streamed[0])


def test_a_model_without_attention_is_not_divided_among_chips() -> None:
    class Plain(Small):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.out(self.inside(self.words(tokens))[:, -1, :WIDTH])
            return out

    recorded = record_forward(built(Plain), 8, 2)
    assert recorded.token_bytes() == 0 and table(recorded).seconds([], 1, 0) > 0
    with pytest.raises(
        BringupError, match=r"Plain calls no scaled_dot_product_attention, .*: leave --chips-per-engine"
    ):
        table(recorded, chips=2)


def test_a_program_without_tokens_is_recorded_by_batch() -> None:
    model = built(Picture)
    assert not has_tokens(model) and has_tokens(built(Small))
    assert list(record_batches(model, 4)) == [1, 2, 4]


def test_a_file_names_the_function(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def model(): return 1\ndef other(): return 2\n", encoding="utf-8")
    assert (load(str(path))(), load(f"{path}:other")()) == (1, 2)
    with pytest.raises(BringupError, match="has no function third"):
        load(f"{path}:third")
    with pytest.raises(BringupError, match="there is no such file"):
        load(str(tmp_path / "missing.py"))
    path.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(BringupError, match="failed with ZeroDivisionError"):
        load(str(path))


def test_a_file_may_have_dataclasses_and_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 3\n", encoding="utf-8")
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Sizes:\n"
        "    width: int = 1\n"
        "def model():\n"
        "    from beside_it import VALUE\n"
        "    return VALUE + Sizes().width\n",
        encoding="utf-8",
    )
    assert load(str(path))() == 4


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(BringupError, match=r"must return a torch\.nn\.Module, got int"):
        built(lambda: 1)
    with pytest.raises(BringupError, match="give it a method example"):
        built(lambda: nn.Linear(2, 2))
    with pytest.raises(BringupError, match="cannot be built: ZeroDivisionError"):
        built(lambda: 1 / 0)


def test_a_model_that_fails_is_refused_with_its_error() -> None:
    class Failing(Small):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such token")

    with pytest.raises(BringupError, match="Failing fails for 1 x 1 tokens: ValueError: no such token"):
        record_forward(built(Failing), 64, 8)


def test_an_example_that_fails_is_refused_with_its_error() -> None:
    class Failing(Picture):
        def example(self, batch: int) -> torch.Tensor:
            raise ValueError("no such picture")

    with pytest.raises(BringupError, match=r"Failing\.example fails for a batch of 1: ValueError: no such picture"):
        record_batches(built(Failing), 2)
