"""Serving from the command line and from Python: the numbers, the files, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bringup
from bringup.cli import bringup as cli
from bringup.errors import BringupError
from bringup.serving.engine import Speculation
from bringup.serving.outcome import Objective, growth
from bringup.serving.serve import Options, TooLargeError, check
from tests.report import traces

HEADER = "prefill_tokens,decode_requests,context_tokens,seconds\n"
ROWS = "0,1,0,0.01\n0,64,0,0.02\n1000,1,0,0.06\n1000,64,0,0.07\n"
VISION = """
import torch
class Picture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 3)
    def example(self, batch):
        return torch.zeros(batch, 3, 32, 32)
    def forward(self, pictures):
        return self.layer(pictures)
model = Picture
"""
WITHOUT_ATTENTION = """
import torch
class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = torch.nn.Embedding(100, 64), torch.nn.Linear(64, 100)
    def example(self, batch, tokens):
        return torch.zeros(batch, tokens, dtype=torch.int64)
    def forward(self, tokens):
        return self.out(self.words(tokens)[:, -1])
model = Words
"""


@pytest.fixture
def steps(tmp_path: Path) -> str:
    path = tmp_path / "steps.csv"
    path.write_text(HEADER + ROWS, encoding="utf-8")
    return str(path)


@pytest.fixture
def vision(tmp_path: Path) -> str:
    path = tmp_path / "vision.py"
    path.write_text(VISION, encoding="utf-8")
    return str(path)


def served(**settings: Any) -> Any:
    return bringup.serve(**{"kv_tokens": 10_000, "lengths": "fixed:100:20", "requests": 200, **settings})


def invoke(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["serve", *arguments, "--json"], catch_exceptions=False)
    numbers: dict[str, Any] = json.loads(result.stdout)
    return numbers


def test_json_has_the_documented_keys(steps: str) -> None:
    asked = ("--arrivals", "poisson:2", "--lengths", "fixed:100:20", "--requests", "100", "--kv-tokens", "5000")
    numbers = invoke("--step-seconds", steps, *asked)
    assert {"requests", "goodput", "tokens_per_second", "preemptions", "kv_blocks", "unstable", "band"} <= set(numbers)
    assert numbers["requests"] == 100 and numbers["kv_blocks"] == 5000 // 16 and numbers["unstable"] is False
    for name in ("ttft", "tpot", "latency"):
        assert sorted(numbers[name]) == ["mean", "p50", "p90", "p99"]
    assert numbers["cost_per_million_tokens"] is None


def test_the_same_seed_gives_the_same_bytes(steps: str) -> None:
    first, second, other = (
        served(step_seconds=steps, arrivals="poisson:5", lengths="lognormal:100:20", seed=seed) for seed in (1, 1, 2)
    )
    assert json.dumps(first.as_dict()) == json.dumps(second.as_dict()) != json.dumps(other.as_dict())


def test_a_rate_beyond_capacity_is_called_unstable(steps: str) -> None:
    outcome = served(step_seconds=steps, arrivals="constant:100", requests=1000, lengths="fixed:1000:20")
    assert outcome.unstable and outcome.queue_growth == pytest.approx(100 - 1000 / outcome.seconds, rel=0.1)
    asked = ("--arrivals", "constant:100", "--lengths", "fixed:1000:20", "--kv-tokens", "10000")
    result = CliRunner().invoke(cli, ["serve", "--step-seconds", steps, *asked])
    assert "unstable: the queue grows by" in result.stdout and "requests/s" in result.stdout


def test_growth_is_the_slope_of_the_queue() -> None:
    arrival = np.arange(1000) / 10.0
    assert growth(arrival, arrival / 0.8, arrival / 0.8 + 1) == (pytest.approx(2.0, rel=0.02), True)
    assert growth(arrival, arrival + 0.3, arrival + 1) == (pytest.approx(0, abs=0.02), False)


def test_a_calibration_scales_all_steps(steps: str) -> None:
    plain = served(step_seconds=steps, arrivals="closed:1")
    twice = served(step_seconds=steps, arrivals="closed:1", calibrate=2.0)
    assert twice.percentiles()["latency"]["mean"] == pytest.approx(2 * plain.percentiles()["latency"]["mean"])


def test_the_largest_rate_keeps_the_objective_and_a_larger_one_does_not(steps: str) -> None:
    objective = Objective(ttft=0.2)
    settings = {"step_seconds": steps, "slo": objective, "lengths": "fixed:500:20", "requests": 300}
    rate = served(arrivals="poisson:1", find_rate=True, **settings).largest_rate
    same = [served(arrivals=f"poisson:{rate * factor / served_rate(settings)}", **settings) for factor in (0.99, 1.02)]
    assert [outcome.attainment >= 0.99 for outcome in same] == [True, False]


def served_rate(settings: dict[str, Any]) -> float:
    """The rate of what `poisson:1` draws, which is not exactly one."""
    outcome = served(arrivals="poisson:1", **settings)
    arrivals = [request.arrival for request in outcome.requests]
    return (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])


def test_a_prefix_router_finds_the_engine_that_has_it(tmp_path: Path, steps: str) -> None:
    rows = [
        {
            "arrival": 0.5 * n,
            "prompt_tokens": 900,
            "output_tokens": 4,
            "prefix": n % 3 if n % 2 else n % 5,
            "prefix_tokens": 800,
        }
        for n in range(200)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = {
        router: sum(
            r.read
            for r in served(
                step_seconds=steps, arrivals=str(path), lengths=None, requests=None, replicas=3, router=router
            ).requests
        )
        for router in ("round-robin", "prefix")
    }
    assert read["prefix"] > 1.02 * read["round-robin"]


def test_power_lengthens_steps(vision: str) -> None:
    settings = {"arrivals": "closed:1", "requests": 20, "max_requests": 2}
    chip = bringup.load_chip("h100-sxm")
    plain, half = (
        bringup.serve(vision, chip="h100-sxm", max_watts=watts, **settings).percentiles()["latency"]["mean"]
        for watts in (None, chip.power.tdp_w / 2 if chip.power else 0)
    )
    assert half == pytest.approx(plain * 0.9 / 0.4)  # a tenth of it is idle power


def test_a_program_without_tokens_is_served_in_batches(vision: str) -> None:
    asked = ("--arrivals", "constant:1000", "--requests", "200", "--max-requests", "8", "--window", "5ms")
    numbers = invoke(vision, "--chip", "t4,h100-sxm", *asked, "--deadline", "1s", "--jitter", "lognormal:0.2")
    assert [row["chip"] for row in numbers] == ["t4", "h100-sxm"]  # type: ignore[index]
    assert all(row["dropped"] == 0 and row["steps"] < 200 for row in numbers)  # type: ignore[index]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_watts": math.nan}, "--max-watts nan is not above"),
        ({"slo": Objective(tpot=0.1)}, "--slo tpot does not apply to a program without tokens"),
        ({"window": 0.1, "max_requests": 1}, "--window waits for a batch, and batches have one request here"),
        ({"speculation": Speculation(4, 0.7)}, "--speculate does not apply to a program without tokens"),
    ],
)
def test_settings_that_mean_nothing_to_a_program_are_refused(
    vision: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BringupError, match=message):
        bringup.serve(vision, **{"chip": "h100-sxm", "arrivals": "poisson:2", "max_requests": 2, **settings})


def test_inputs_have_the_dtype_of_the_weights(vision: str) -> None:
    half, whole = (
        bringup.serve(vision, chip="h100-sxm", arrivals="closed:1", max_requests=1, requests=3, dtype=dtype)
        for dtype in ("float16", "float32")
    )
    assert half.seconds <= whole.seconds


def test_a_file_of_arrivals_serves_a_program(tmp_path: Path, vision: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"arrival": 0}\n{"arrival": 2.5}\n', encoding="utf-8")
    outcome = bringup.serve(vision, chip="h100-sxm", arrivals=str(path), max_requests=2)
    assert [request.arrival for request in outcome.requests] == [0.0, 2.5]
    assert outcome.as_dict()["tpot"] is None


def test_a_batch_may_be_larger_than_the_budget_of_an_engine() -> None:
    check(Options("poisson:2", max_requests=4096))


def test_requests_that_are_turned_away_keep_no_service_level(vision: str) -> None:
    outcome = bringup.serve(
        vision,
        **{"chip": "h100-sxm", "arrivals": "constant:1e9", "requests": 50, "max_requests": 1, "queue_limit": 4},
        slo=Objective(latency=1.0),
    )
    numbers = outcome.as_dict()
    assert numbers["requests"] == 50 and 0 < numbers["dropped"] == 50 - len(outcome.requests)
    assert numbers["attainment"] == pytest.approx(1 - numbers["dropped"] / 50)


def test_requests_of_one_token_have_no_time_per_further_token(tmp_path: Path, steps: str) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [{"arrival": 10.0 * n, "prompt_tokens": 1000, "output_tokens": 1 + n} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = served(step_seconds=steps, arrivals=str(path), lengths=None, requests=None, slo=Objective(tpot=1.0))
    tpot = outcome.percentiles()["tpot"]
    assert tpot["mean"] == tpot["p50"] == pytest.approx(0.01) and outcome.attainment == 1
    asked = ("--arrivals", "poisson:5", "--lengths", "fixed:10:1", "--requests", "9", "--kv-tokens", "5000")
    assert invoke("--step-seconds", steps, *asked)["tpot"] is None


def test_a_rate_without_a_limit_is_null(steps: str) -> None:
    asked = ("--arrivals", "poisson:5", "--lengths", "fixed:10:1", "--requests", "9", "--kv-tokens", "5000")
    numbers = invoke("--step-seconds", steps, *asked, "--find-rate", "--slo", "ttft=1000s")
    assert numbers["largest_rate"] is None
    with pytest.raises(BringupError, match="--find-rate needs requests that arrive at different times"):
        served(step_seconds=steps, arrivals="poisson:1", requests=1, find_rate=True, slo=Objective(ttft=1.0))


def test_a_report_has_engines_without_requests(tmp_path: Path, steps: str) -> None:
    pytest.importorskip("pyarrow")
    asked = ("--arrivals", "poisson:5", "--lengths", "fixed:10:1", "--requests", "1", "--kv-tokens", "5000")
    invoke("--step-seconds", steps, *asked, "--replicas", "2", "--out", str(tmp_path / "out"))
    assert "running, engine 1" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_model_without_attention_needs_the_size_of_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(WITHOUT_ATTENTION, encoding="utf-8")
    settings = {"arrivals": "poisson:2", "lengths": "fixed:10:2", "max_requests": 2, "prefill": "chunked:8"}
    with pytest.raises(BringupError, match=r"Words calls no scaled_dot_product_attention, .* --kv-tokens"):
        bringup.serve(str(path), chip="h100-sxm", **settings)
    assert bringup.serve(str(path), chip="h100-sxm", kv_tokens=1000, requests=5, **settings).output_tokens == 10


def test_a_recording_is_a_program() -> None:
    import torch

    with bringup.dry(), bringup.record() as trace:
        torch.ones(512, 512, device="chip") @ torch.ones(512, 512, device="chip")
        bringup.step()
    outcome = bringup.serve(trace, chip="h100-sxm", arrivals="closed:1", requests=10)
    seconds = bringup.price(trace, "h100-sxm").summary.step_seconds
    assert outcome.percentiles()["latency"]["p50"] == pytest.approx(seconds, rel=0.01)
    with pytest.raises(BringupError, match="--window waits for a batch"):
        bringup.serve(trace, chip="h100-sxm", arrivals="closed:1", window=0.1)
    with pytest.raises(BringupError, match="--max-requests: the largest batch of a recording has 1 request"):
        bringup.serve(trace, chip="h100-sxm", arrivals="closed:1", max_requests=8)
    with pytest.raises(BringupError, match="--dtype chooses that of a model's weights"):
        bringup.serve(trace, chip="h100-sxm", arrivals="closed:1", dtype="float16")


def test_the_files_of_a_report(tmp_path: Path, steps: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    asked = ("--arrivals", "poisson:5", "--lengths", "fixed:100:20", "--requests", "50", "--kv-tokens", "5000")
    numbers = invoke("--step-seconds", steps, *asked, "--out", str(out), "--slo", "ttft=1s")
    assert {path.name for path in out.iterdir()} == {
        *("report.html", "timeline.pftrace.gz", "requests.parquet", "summary.json", "steps.csv")
    }
    table = parquet.read_table(out / "requests.parquet").to_pydict()
    assert np.mean(table["ttft"]) == pytest.approx(numbers["ttft"]["mean"])
    slices = traces.read((out / "timeline.pftrace.gz").read_bytes()).slices
    assert len({piece.track for piece in slices}) == 50
    assert {piece.name for piece in slices} == {"waits", "prefill", "decode"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert "keep the service level: time to first token at most 1.0 s<" in page
    files = {path.name for path in out.iterdir()}
    invoke("--step-seconds", steps, *asked, "--out", str(out))  # replaces them
    assert {path.name for path in out.iterdir()} == files
    again = invoke("--step-seconds", str(out / "steps.csv"), *asked)
    assert again["latency"]["mean"] == pytest.approx(numbers["latency"]["mean"], rel=0.02)


def test_disaggregation_serves_all_and_counts_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import transformers\n"
        "def model():\n"
        "    sizes = dict(vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1)\n"
        "    heads = dict(num_attention_heads=2, num_key_value_heads=1)\n"
        "    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))\n",
        encoding="utf-8",
    )
    pytest.importorskip("transformers")
    asked = {
        "arrivals": "poisson:50",
        "lengths": "fixed:100:20",
        "requests": 50,
        "max_requests": 8,
        "prefill": "chunked:64",
    }
    outcome = bringup.serve(str(path), chip="h100-sxm", disaggregate=(1, 2), **asked)
    assert outcome.engines == 3 and outcome.output_tokens == 50 * 20
    assert outcome.band is not None and outcome.bands is not None
    low, high = (band["latency"]["mean"] for band in outcome.bands)
    assert low < outcome.percentiles()["latency"]["mean"] < high
    assert outcome.joules_per_token is not None and outcome.joules_per_token > 0
    with pytest.raises(TooLargeError, match=r"a KV cache of 10,000,000,000 tokens .*: state a smaller cache"):
        bringup.serve(str(path), chip="h100-sxm", kv_tokens=10**10, **asked)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kv_tokens": None}, "state the engine's KV cache"),
        (
            {"lengths": "fixed:20000:1"},
            "request 0 of poisson:2 needs 20,000 tokens of KV cache, and an engine has 10,000: state a larger cache",
        ),
        ({"policy": "priority"}, "--policy priority needs requests with a priority"),
        ({"router": "prefix"}, "--router prefix chooses among engines: ask for --replicas 2"),
        (
            {"router": "round-robin", "disaggregate": (1, 2)},
            "--router round-robin chooses among engines: ask for two or more that prefill",
        ),
        ({"router": "prefix", "replicas": 2}, "--router prefix needs requests with a prefix"),
        ({"chips": 2}, "--chips-per-engine needs the chip"),
        ({"host": "epyc-9654"}, "--host does not change the steps of --step-seconds"),
        ({"find_rate": True}, "--find-rate needs the service level"),
        ({"max_watts": 100.0}, "--max-watts needs a chip"),
        ({"preemption": "swap"}, "--preemption swap needs a model and a chip"),
        ({"disaggregate": (1, 1)}, "--disaggregate needs a model and a chip"),
        ({"disaggregate": (1, 1), "replicas": 2}, "leave --replicas out"),
        ({"prefill": "whole"}, "prefill must be chunked:TOKENS or separate:TOKENS"),
        ({"max_requests": 4096}, "4,096 requests of 1 token each need a budget"),
        ({"kv_blocks": 5}, "both state the cache"),
        ({"replicas": 0}, "--replicas must be at least 1, got 0"),
        ({"window": 0.1}, "--window does not apply to a language model"),
        ({"deadline": 0.1}, "--deadline does not apply to a language model: use --slo latency=TIME"),
        ({"step_seconds": None}, "name a model"),
        ({"dtype": "float16"}, "--dtype chooses that of a model's weights"),
        ({"dtype": "int3"}, "dtype must be auto, float32"),
        ({"block_size": 2**40}, "--block-size must be at most 65,536, since each step counts"),
        ({"replicas": 2**33}, "--replicas must be at most 4,096, since each engine is simulated"),
        ({"arrivals": "closed:10", "queue_limit": 2}, "--queue-limit does not apply to clients that wait"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(steps: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BringupError, match=message):
        served(**{"step_seconds": steps, "arrivals": "poisson:2", **settings})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--slo", "fast"), "write ttft=2s,tpot=50ms"),
        (("--slo", "ttft=2"), "it has no unit"),
        (("--speculate", "4"), "write TOKENS:ACCEPTANCE"),
        (("--disaggregate", "1"), "such as 1:3"),
        (("--calibrate", "1"), "MEASURED:PREDICTED"),
        (("--calibrate", "1:0"), "MEASURED:PREDICTED"),
        (("--kv-blocks", "many"), "write a number of blocks, or auto"),
        (("--chip", "h100-sx"), "did you mean h100-sxm"),
    ],
)
def test_malformed_options_are_refused(steps: str, arguments: tuple[str, str], message: str) -> None:
    asked = ["serve", "--step-seconds", steps, "--arrivals", "poisson:1", "--lengths", "fixed:1:1", "--kv-tokens", "99"]
    result = CliRunner().invoke(cli, [*asked, *arguments])
    assert result.exit_code != 0
    assert message in result.stderr + str(result.exception)


def test_a_calibration_is_read_with_and_without_units(steps: str) -> None:
    from bringup.cli.serve import parse_calibration

    assert parse_calibration("0.03:0.02") == parse_calibration("30ms:20ms") == pytest.approx(1.5)
    assert math.isclose(parse_calibration("1:2"), 0.5)
