"""The typical step, its spread, and the steps with other work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import bringup
from bringup.report.lines import lines

HERE = Path(__file__).name


def predicted(program: Callable[[], object]) -> bringup.Prediction:
    with bringup.record() as trace:
        program()
    return bringup.price(trace, "a100-sxm-80")


def shown(prediction: bringup.Prediction, role: str) -> list[str]:
    return [line.text for line in lines(prediction.summary) if line.role == role]


def line_of(text: str) -> int:
    """Return the only line of this file that begins with a text."""
    source = Path(__file__).read_text().splitlines()
    (number,) = [number for number, line in enumerate(source, 1) if line.strip().startswith(text)]
    return number


class Program:
    """Training steps of a small model, with an evaluation after some of them."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to("chip")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def step(self, rows: int = 8) -> None:
        x = torch.ones(rows, 8).to("chip")
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self) -> None:
        x = torch.ones(50, 8, device="chip")
        with torch.no_grad():
            for _ in range(30):
                y = self.model(x)
                x = torch.cat([x[:, 4:], y], 1)


def test_an_evaluation_is_named_apart_from_the_typical_step() -> None:
    program = Program()

    def train() -> None:
        for step in range(9):
            program.step()
            if step in (1, 4):
                program.evaluate()

    def plain() -> None:
        for _ in range(9):
            program.step()

    summary, usual = predicted(train).summary, predicted(plain).summary
    (other,) = summary.unlike_steps
    assert (Path(other.file).name, other.line, other.count) == (HERE, line_of("y = self.model(x)"), 2)
    assert other.launches == usual.launches + 1 + 30 * 4  # ones; two products, an activation and a concatenation each
    assert other.seconds > 3 * summary.step_seconds
    assert (summary.launches, summary.samples, summary.like_steps) == (usual.launches, 8, 6)
    assert summary.step_seconds == pytest.approx(usual.step_seconds, rel=0.05) and not usual.unlike_steps
    (text,) = shown(predicted(train), "unlike")
    assert f"2 steps with other work at {other.file}:{other.line}: {other.launches} launches" in text


def test_an_evaluation_through_the_same_lines_is_named_apart() -> None:
    program = Program()

    def run(batches: int, train: bool) -> None:
        for _ in range(batches):
            loss = program.model(torch.ones(8, 8).to("chip")).square().mean()
            if train:
                loss.backward()
                program.optimizer.step()

    def epochs() -> None:
        for _ in range(3):
            run(6, True)
            run(20, False)

    summary = predicted(epochs).summary
    (other,) = summary.unlike_steps
    assert (summary.steps, other.count, other.line) == (18, 2, line_of("loss = program.model"))
    assert summary.after.launches == 20 * 5 and summary.launches < 40


def test_a_checkpoint_is_named_apart(tmp_path: Path) -> None:
    model = nn.Linear(1024, 1024).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for step in range(9):
            model(torch.ones(4, 1024, device="chip")).square().mean().backward()
            optimizer.step()
            if step == 4:
                torch.save(model.state_dict(), tmp_path / "weights.pt")

    summary = predicted(train).summary
    (other,) = summary.unlike_steps
    assert (Path(other.file).name, other.line, other.count) == (HERE, line_of("torch.save(model"), 1)
    assert other.launches == summary.launches


def test_equal_steps_that_print_now_and_then_have_no_remarks() -> None:
    program = Program()

    def train() -> None:
        for step in range(20):
            program.step()
            if step % 5 == 4:
                print(program.model[0].bias.sum().item())

    prediction = predicted(train)
    assert not prediction.unlike_steps and not prediction.unequal
    assert not shown(prediction, "unlike") and not shown(prediction, "unequal") and not shown(prediction, "outside")
    (text,) = shown(prediction, "launches")
    assert text.endswith("20 steps, one per optimizer step; shown is the median of the 19 after the first")


def test_unequal_steps_are_called_unequal() -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(4))).to("chip")

    def infer() -> None:
        for rows in (512, 1024, 2048, 4096, 8192, 16384):
            model(torch.empty(rows, 2048, device="chip"))
            torch.chip.synchronize()

    with bringup.dry():
        prediction = predicted(infer)
    assert prediction.low_seconds < prediction.step_seconds < prediction.high_seconds
    (text,) = shown(prediction, "unequal")
    assert "unequal" in text and not prediction.unlike_steps


def test_steps_that_take_turns_show_the_more_frequent_ones() -> None:
    program = Program()
    other = Program()

    def train() -> None:
        for step in range(12):
            if step % 3 == 0:
                other.step(16)
                for _ in range(9):
                    torch.ones(3, device="chip").exp().tanh()
            program.step()

    summary = predicted(train).summary
    assert summary.launches < 30 and sum(item.count for item in summary.unlike_steps) == 3


def test_set_up_is_named_apart_from_a_single_step() -> None:
    program = Program()

    def train() -> None:
        for _ in range(50):
            program.model(torch.ones(1, 8, device="chip"))
        program.step()

    prediction = predicted(train)
    assert prediction.before.launches == 50 * 4
    (text,) = shown(prediction, "outside")
    assert text.startswith("  before the first step: 200 launches, ")
    assert text.endswith(f"longest at {prediction.before.file}:{line_of('program.model(torch.ones(1, 8')}")
    (text,) = shown(prediction, "launches")
    assert text.endswith("1 step, one per optimizer step")


def test_a_run_without_steps_says_nothing_of_steps() -> None:
    def program() -> None:
        x = torch.ones(64, 64, device="chip")
        print((x @ x).relu().sum().item())

    prediction = predicted(program)
    text = "\n".join(line.text for line in lines(prediction.summary) if line.role not in ("bottleneck", "advice"))
    assert "per step" not in text and "step 1" not in text and "per run on" in repr(prediction)
    assert prediction.memory.at is not None
    from bringup.report.lines import moment

    assert not moment(prediction.memory.at, prediction.summary).startswith("step")


def test_typical_steps_that_are_little_of_the_run_are_called_so() -> None:
    program = Program()

    def train(rollout: int) -> None:
        for _ in range(6):
            for _ in range(4):
                program.step()
            for _ in range(rollout):
                program.model(torch.ones(2, 8, device="chip"))

    mostly_rollouts, mostly_steps = predicted(lambda: train(80)), predicted(lambda: train(5))
    assert mostly_rollouts.typical_share < 0.5 < mostly_steps.typical_share < 1
    (text,) = shown(mostly_rollouts, "typical-share")
    assert text == f"  steps like the one shown are {mostly_rollouts.typical_share:.0%} of the run"
    assert not shown(mostly_steps, "typical-share")


def test_what_follows_the_steps_is_named_with_the_line_that_takes_longest() -> None:
    program = Program()

    def train() -> None:
        for _ in range(3):
            program.step()
        torch.ones(8, device="chip").exp()
        program.evaluate()

    prediction = predicted(train)
    (text,) = shown(prediction, "outside")
    assert text.startswith("  after the last step: ") and text.endswith(f":{line_of('y = self.model(x)')}")


def evaluations(batches: list[int]) -> bringup.Prediction:
    """Predict a training with an evaluation of so many batches after every third step."""
    program = Program()

    def train() -> None:
        for number in batches:
            for _ in range(3):
                program.step()
            for _ in range(number):
                program.model(torch.ones(50, 8, device="chip")).sum()
        for _ in range(3):
            program.step()

    return predicted(train)


def test_other_work_of_different_lengths_is_a_range() -> None:
    (text,) = shown(evaluations([20, 30, 45, 70, 105]), "unlike")
    (other,) = evaluations([20, 30, 45, 70, 105]).unlike_steps
    assert other.count == 5 and other.high_seconds > 3 * other.low_seconds
    assert " to " in text and text.endswith(" each") and "launches" not in text


def test_other_work_of_two_kinds_is_listed_twice() -> None:
    long, short = evaluations([20, 80, 20, 80]).unlike_steps
    assert (long.line, long.count, short.count) == (short.line, 2, 2) and long.launches > 2 * short.launches
    assert not long.is_unequal and not short.is_unequal


def test_longer_inputs_are_no_other_work() -> None:
    cell = nn.Linear(16, 8).to("chip")

    def train() -> None:
        for length in (6, 6, 5, 10, 6, 9, 6, 7, 6, 10):
            state = torch.zeros(1, 8, device="chip")
            for _ in range(length):
                state = torch.tanh(cell(torch.cat((torch.ones(1, 8, device="chip"), state), 1)))
            state.exp().tanh().sigmoid().sin().cos().tanh().sin().cos().square().sum().backward()
            with torch.no_grad():
                for parameter in cell.parameters():
                    parameter.sub_(parameter.grad)

    prediction = predicted(train)
    assert prediction.like_steps == 9 and not prediction.unlike_steps and prediction.unequal


def failed(program: Callable[[], object]) -> bringup.Prediction:
    with bringup.record() as trace:
        program()
    trace.about["failed"] = True
    return bringup.price(trace, "a100-sxm-80")


def test_a_program_that_fails_in_its_first_step_has_no_steps() -> None:
    program = Program()
    prediction = failed(lambda: program.model(torch.ones(8, 8, device="chip")).sum().backward())
    assert prediction.steps_by == "whole" and not shown(prediction, "outside")
    (text,) = shown(prediction, "launches")
    assert text.endswith(" launches, recorded up to the error")


def test_a_program_that_fails_later_keeps_its_complete_steps() -> None:
    program = Program()

    def infer() -> None:
        for rows in (8, 9, 10, 11):
            program.model(torch.ones(rows, 8, device="chip"))

    assert (predicted(infer).steps, failed(infer).steps) == (4, 3)
    prediction = failed(lambda: [program.step() for _ in range(4)])
    assert (prediction.steps, prediction.steps_by) == (4, "optimizer")


def test_warm_up_and_capture_are_named_apart_from_replays() -> None:
    program = Program()
    x = torch.ones(8, 8, device="chip")

    def infer() -> None:
        graph = torch.chip.CUDAGraph()
        with torch.no_grad():
            for _ in range(3):
                program.model(x)
            with torch.chip.graph(graph):
                program.model(x)
        for _ in range(6):
            graph.replay()

    prediction = predicted(infer)
    (text,) = shown(prediction, "outside")
    assert text.startswith("  before the first step (warm-up and capture of the graph): 9 launches, ")
    (text,) = shown(prediction, "launches")
    assert "6 steps, one per replay of a captured graph" in text
