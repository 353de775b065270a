"""Random programs do on the chip what they do on the CPU. The long way: python -m tests.programs.random_programs."""

import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.programs import random_programs
from tests.programs.random_programs import Program, outcome_of, program, random_program, shortened

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

# Programs that have found a fault, shortened.
KEPT = {
    "results are laid out as the CPU's kernel would, whatever the meta kernel makes of out=": """
        t1 = torch.zeros((2, 3), device=dev).t()
        t2 = torch.abs(t1)
        t3 = torch.logical_or(t1, t1)
        t4 = torch.isinf(t1)
        t5 = torch.zeros((2, 40000), device=dev).t()
        t6 = torch.logical_not(t5)
        t7 = torch.i0(t1, out=torch.zeros((), device=dev))
    """,
    "out= that overlaps with an argument is refused before it is resized": """
        t1 = torch.ones((1,), device=dev)
        t2 = t1.squeeze(0)
        t3 = torch.nan_to_num(t1, out=t2)
    """,
    "out= that overlaps with an argument is refused at the call where tensors are large": """
        t1 = data((130, 200), torch.float16, 180)
        t2 = t1.view(torch.int64)
        t3 = torch.logical_not(t2, out=t1)
    """,
    "out= that is an argument's memory may be resized": """
        t1 = torch.ones((), device=dev)
        t2 = t1[None]
        t3 = torch.eq(t2, t1, out=t1.t())
    """,
    "resize_ to the same sizes keeps the strides": """
        t1 = data((3, 4), torch.float32, 1).t()
        t2 = t1.resize_((4, 3))
        t3 = t1.resize_as_(t1)
        t4 = data((2, 3, 4, 5), torch.float32, 1).resize_((2, 3, 4, 5), memory_format=torch.channels_last)
    """,
    "is_set_to compares the tensors": """
        t1 = data((3, 4), torch.float32, 1)
        t2 = t1.is_set_to(t1)
        t3 = t1.is_set_to(t1.t())
        t4 = torch.empty(0, device=dev).set_(t1).is_set_to(t1)
    """,
    "operators of lists that write say so to autograd": """
        t1 = torch.ones((3,), device=dev, requires_grad=True)
        t2 = t1.exp()
        t3 = torch._foreach_mul_([t2.detach()], 2)
        backward(t2)
        t4 = data((4, 3), torch.float32, 1)
        t5 = t4.ravel()
        t6 = torch._foreach_zero_([t4])
        t4.requires_grad_()
    """,
    "complex numbers for real tensors are refused in a dry run, too": """
        t1 = data((100, 200), torch.float64, 1)
        t2 = t1.addcmul_(t1, t1, value=1j)
        t3 = t1.add_(t1, alpha=1j)
        t4 = t1.mul_(1j)
        t5 = t1.fill_(1j)
        t6 = t1.lerp_(t1, 1j)
    """,
    "dimensions and expanded results of large tensors are looked at, though others were accepted": """
        t1 = data((20000,), torch.float32, 1)
        t2 = torch.softmax(t1, 0, dtype=torch.float64)
        t3 = torch.softmax(t1, 1, dtype=torch.float64)
        t4 = data((2, 20000), torch.float32, 1)
        t5 = t4.add_(t4)
        t6 = t1.expand(2, -1)
        t7 = t6.add_(t4)
    """,
    "numbers that a dtype cannot hold are refused, though others were accepted": """
        t1 = torch.full((), 1, dtype=torch.complex32, device=dev)
        t2 = torch.full((), 1e30, dtype=torch.complex32, device=dev)
        t3 = torch.zeros(3, dtype=torch.complex32, device=dev).fill_(1e30)
        t4 = torch.zeros(3, dtype=torch.complex32, device=dev).fill_(1e300 + 1j)
        t5 = torch.zeros((600, 600), dtype=torch.bfloat16, device=dev).fill_(2.0)
        t6 = torch.zeros((600, 600), dtype=torch.bfloat16, device=dev).fill_(1e39)
    """,
    "what has a kernel of its own on the CPU and on other devices has one on the chip": """
        t1 = data((2, 2, 3, 7), torch.float16, 831).requires_grad_()
        t2 = gradient(F.mish(t1.exp()), t1)
        t3 = gradient(F.silu(t1.exp()), t1)
        t4 = gradient(gradient(F.silu(t1), t1, True), t1)
        t5 = F.channel_shuffle(data((2, 4, 3, 3), torch.float32, 1), 2)
    """,
    "operators of lists refuse inference tensors": """
        with torch.inference_mode(): t1 = torch.zeros((3,), device=dev)
        t2 = torch._foreach_zero_([t1])
    """,
}


@pytest.mark.parametrize("mode", ["plain", "recorded", "dry"])
@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_program_that_found_a_fault(text: str, mode: str) -> None:
    modes = {} if mode == "plain" else {mode: True}
    assert outcome_of(program(text, **modes)) == ("equal", "")


@settings(max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=CHECKS)
@given(rng=st.randoms(use_true_random=False))
def test_random_program_is_equal_on_both_devices(rng: random.Random) -> None:
    made = random_program(rng, longest=15)
    outcome, reason = outcome_of(made)
    assert outcome == "equal", f"{outcome}: {reason}\n{made}"


def test_campaign_is_equal_on_both_devices() -> None:
    command = [sys.executable, "-m", "tests.programs.random_programs", "--count", "40", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("40 programs of seed 3 in ")


@pytest.mark.slow
def test_long_campaign_is_equal_on_both_devices() -> None:
    faults = [found for found in random_programs.campaign(seed=4, count=2000) if found[1] in random_programs.FAULTS]
    assert not faults


@pytest.mark.slow
def test_threads_with_streams_compute_and_recover() -> None:
    command = [sys.executable, "benchmarks/soak_threads.py", "--seconds", "20", "--bar", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every comparison equal" in done.stdout


# ---- the comparison itself notices what is wrong


@pytest.mark.parametrize("threads", [False, True], ids=["streams", "threads"])
def test_lanes_hand_tensors_over(threads: bool) -> None:
    text = """
        0: a = data((64, 64), torch.float32, 1)
        1: b = data((64, 64), torch.float32, 2)
        0: a = a @ a
        0: give('k', a)
        1: c = taken('k')
        1: b = b @ c
        0: a.add_(1)
        1: give('l', b)
        0: d = taken('l') + a
    """
    assert outcome_of(program(text, threads=threads, recorded=True)) == ("equal", "")


def test_wrong_layout_value_and_error_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def noticed(text: str) -> str:
        return outcome_of(program(text))[0]

    assert noticed("a = torch.ones(2, 3 + (dev.type == 'chip'), device=dev)") == "wrong layout"
    assert noticed("a = torch.ones(2, 3, device=dev, requires_grad=dev.type == 'chip')") == "wrong layout"
    assert noticed("a = torch.full((3,), 1.0 + (dev.type == 'chip'), device=dev)") == "wrong value"
    assert noticed("a = torch.ones(3, device=dev)[1 if dev.type == 'cpu' else 7]") == "wrong error"
    assert (
        noticed("a = torch.ones(3, device=dev).gather(0, torch.tensor([dev.type == 'chip']).to(dev) * 9)")
        == "late error"
    )
    assert noticed("a = torch.ones(3, device=dev)[7]") == "equal"


def test_program_that_fails_is_shortened_to_what_matters() -> None:
    steps = [f"t{number} = torch.ones({number}, device=dev)" for number in range(20)]
    steps.insert(11, "t7.add_(dev.type == 'chip')")
    made = program("\n".join(steps), recorded=True)
    short = shortened(made, lambda shorter: outcome_of(shorter)[0] == "wrong value")
    assert [step.text for step in short.steps] == ["t7 = torch.ones(7, device=dev)", "t7.add_(dev.type == 'chip')"]
    assert not short.recorded


def test_program_follows_from_its_seed() -> None:
    def made(number: int) -> Program:
        return random_program(random_programs.rng_of(1, number))

    assert made(5) == made(5) != made(6)
