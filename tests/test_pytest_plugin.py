"""``pytest --chip``: what it finds, what it leaves alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import slow, without_bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SUITE = """
import pytest, torch
device = torch.accelerator.current_accelerator() or "cpu"
kept = []


def test_right():
    assert (torch.ones(3, device=device) + 1).sum().item() == 6


def test_init():
    torch.empty(8, device=device).add_(1)


def test_leak():
    kept.append(torch.ones(1000, device=device))


def test_race():
    s, a = torch.Stream(device), torch.ones(8, 8, device=device)
    with s:
        b = a @ a


def test_device():
    torch.ones(8, device=device)[torch.tensor([1])]


@pytest.mark.max_syncs(1)
def test_syncs():
    x = torch.ones(3, device=device)
    for _ in range(3):
        x.sum().item()


@pytest.mark.max_device_memory("1MiB")
def test_memory():
    torch.zeros(1 << 20, device=device)


@pytest.mark.max_chip_time("1us", chip="t4")
def test_time():
    torch.ones(1000, 1000, device=device) @ torch.ones(1000, 1000, device=device)
"""
FINE = """
import pytest, torch
from torch import nn


@pytest.fixture(scope="module")
def model(chip):
    return nn.Linear(64, 64).to(chip)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters())


@pytest.mark.max_chip_time("50ms")
@pytest.mark.max_device_memory("1 GiB")
@pytest.mark.max_syncs(2)
def test_training(model, optimizer, chip, chip_report):
    loss = model(torch.randn(4, 64).to(chip)).sum()
    loss.backward()
    optimizer.step()
    model.zero_grad()
    loss.item()
    assert chip_report().launches > 5 and chip_report("a100-sxm-80").chip == "a100-sxm-80"


def test_again(model, chip):
    assert model(torch.randn(4, 64).to(chip)).shape == (4, 64)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Run:
    def run(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_it.py").write_text(source, encoding="utf-8")
        environment = without_bringup()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)

    return run


def test_every_finding_fails_its_test_with_its_line(suite: Run) -> None:
    done = suite(SUITE, "--chip", "t4")
    out = done.stdout
    assert done.returncode == 1 and "6 failed, 2 passed, 1 error" in out, out
    assert "t4: init: aten::add_ at test_it.py:12 reads memory that was allocated at test_it.py:12" in out
    assert "t4: leak: 4.00 KiB of device memory outlive the test" in out and "test_it.py:16" in out
    assert (
        "t4: race: aten::mm at test_it.py:22 reads memory on stream 1" in out
        and "aten::fill_ at test_it.py:20 writes" in out
    )
    assert "t4: device: aten::index at test_it.py:26 gets a tensor on the host" in out
    assert "the host waits for the chip 3 times, at most 1 allowed: test_it.py:33 3x" in out
    assert "holds 4.00 MiB of device memory at once, 1.00 MiB are allowed (at test_it.py:38)" in out
    assert "on t4 and its host, 1.0 us are allowed; the chip spends most time at test_it.py:43" in out
    assert "chip t4" in out and "8 tests, " in out
    assert "findings: device 1, init 1, leak 1, memory 1, race 1, sync 1, time 1" in out


@pytest.mark.slow
def test_a_right_suite_passes_with_fixtures_of_every_scope(suite: Run) -> None:
    done = suite(FINE, "--chip", "t4", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout and "findings" not in done.stdout
    again = suite(FINE, "--chip", "t4", "--chip-dry", "-W", "error")
    assert again.returncode == 0 and "dry run, nothing was computed" in again.stdout, again.stdout


def test_warnings_let_the_tests_pass(suite: Run) -> None:
    done = suite(SUITE, "--chip", "t4", "--chip-warn")
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout
    assert "ChipWarning: init: aten::add_ at test_it.py:12" in done.stdout


@pytest.mark.slow
def test_it_works_with_xdist(suite: Run) -> None:
    done = suite(SUITE, "--chip", "t4", "-n", "2")
    assert "6 failed, 2 passed, 1 error" in done.stdout, done.stdout
    assert "8 tests, " in done.stdout and "findings: device 1, init 1, leak 1" in done.stdout


def test_it_is_inert_without_the_option(suite: Run) -> None:
    done = suite(SUITE, "--strict-markers")
    assert done.returncode == 0 and "8 passed" in done.stdout and "chip t4" not in done.stdout, done.stdout
    done = suite(FINE, "--strict-markers")
    assert "2 skipped" in done.stdout and done.returncode == 0, done.stdout


GPU_ONLY = """
import pytest, torch
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
device = "cuda" if torch.version.cuda else "cpu"


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
def test_cuda():
    x = torch.ones(3, device=device)
    assert x.is_cuda and x.device == torch.device("cuda:0") and "NVIDIA T4" in torch.cuda.get_device_name()
    torch.testing.assert_close(x.cuda() + 1, torch.full((3,), 2.0, device="cuda"))


def test_fixture(chip):
    assert chip.type == "cuda"


def test_init():
    torch.empty(8, device="cuda").add_(1)
"""


@pytest.mark.parametrize("workers", [[], *slow(["-n", "2"])])
def test_tests_that_need_a_gpu_run_as_they_are(suite: Run, workers: list[str]) -> None:
    assert "3 skipped" in suite(GPU_ONLY).stdout
    done = suite(GPU_ONLY, "--chip", "t4", "--chip-cuda", *workers)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "init: aten::add_ at test_it.py:19" in done.stdout


def test_strict_refuses_what_the_chip_does_not_have(suite: Run, tmp_path: Path) -> None:
    source = (
        "import torch\ndef test_double():\n    torch.ones(3, dtype=torch.float64, device='chip').sin()\n"
        "def test_single():\n    torch.ones(3, device='chip').sin()\n"
    )
    done = suite(source, "--chip", "tpu-v5e")
    assert (
        "2 passed" in done.stdout and "fallbacks to the host, for operators that tpu-v5e does not have: " in done.stdout
    ), done.stdout
    done = suite(source, "--chip", "tpu-v5e", "--chip-strict")
    assert "1 failed, 1 passed" in done.stdout and "would run on the host" in done.stdout, done.stdout


def test_a_test_that_fails_by_itself_says_only_that(suite: Run) -> None:
    done = suite(
        "import torch\ndef test_it():\n    assert torch.empty(3, device='chip').add_(1) is None\n", "--chip", "t4"
    )
    assert "1 failed" in done.stdout and "init:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--chip", "t5"), "no chip is named 't5'"),
        (("--chip-dry",), "--chip-dry needs --chip NAME"),
        (("--chip-strict",), "--chip-strict needs --chip NAME"),
    ],
)
def test_bad_options_are_one_sentence(suite: Run, arguments: tuple[str, ...], words: str) -> None:
    done = suite(FINE, *arguments)
    assert done.returncode == 4 and f"ERROR: {words}" in done.stderr, done.stderr


def test_a_limit_without_a_unit_is_one_sentence(suite: Run) -> None:
    done = suite(FINE.replace("\ndef test_", '\n@pytest.mark.max_chip_time("20")\ndef test_', 1), "--chip", "t4")
    assert "max_chip_time: '20' is not a time, because it has no unit: use ns, us, ms, s, min" in done.stdout


MODELS = """
import pytest, torch
import transformers as T

size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=200)
grouped = dict(size, num_key_value_heads=2)
models = {
    "bert": lambda: T.BertModel(T.BertConfig(**size)),
    "roberta": lambda: T.RobertaModel(T.RobertaConfig(**size)),
    "electra": lambda: T.ElectraModel(T.ElectraConfig(**size)),
    "deberta": lambda: T.DebertaV2Model(T.DebertaV2Config(**size)),
    "gpt2": lambda: T.GPT2Model(T.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200)),
    "llama": lambda: T.LlamaModel(T.LlamaConfig(**size)),
    "mistral": lambda: T.MistralModel(T.MistralConfig(**grouped)),
    "mixtral": lambda: T.MixtralModel(T.MixtralConfig(**grouped)),
    "qwen2": lambda: T.Qwen2Model(T.Qwen2Config(**grouped)),
    "gemma": lambda: T.GemmaModel(T.GemmaConfig(**grouped, head_dim=16)),
    "mamba": lambda: T.MambaModel(T.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=200)),
    "longformer": lambda: T.LongformerModel(T.LongformerConfig(**size, attention_window=16)),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", models)
def test_model(name, train, chip):
    model = models[name]().to(chip).train(train)
    hidden = model(input_ids=torch.randint(200, (2, 32)).to(chip)).last_hidden_state
    if train:
        hidden.square().mean().backward()
    assert torch.isfinite(hidden.sum()).item()
"""


@pytest.mark.slow
def test_public_models_raise_no_alarm(suite: Run) -> None:
    pytest.importorskip("transformers")
    done = suite(MODELS, "--chip", "t4")
    assert done.returncode == 0 and "24 passed" in done.stdout, done.stdout
    assert "findings" not in done.stdout and "24 tests, " in done.stdout


GROWS = """
import os
import pytest
import torch

SIZE = int(os.environ.get("SIZE", "64"))


@pytest.fixture(scope="module")
def weights():
    return torch.ones(64, 64, device="chip")


@pytest.mark.parametrize("number", range(4))
def test_product(weights, number):
    for _ in range(SIZE // 16):
        result = torch.ones(SIZE * 64, 64, device="chip") @ weights
    assert result.shape[1] == 64


def test_nothing():
    pass
"""


def test_baseline_fails_tests_that_grow(suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = suite(GROWS, "--chip", "t4", "--chip-baseline", "base.json", "--chip-baseline-update")
    assert written.returncode == 0 and "base.json: written with 5 tests" in written.stdout, written.stdout
    tests = json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))["tests"]
    used = tests["test_it.py::test_product[0]"]
    assert used["seconds"] > 0 and used["peak_bytes"] >= 2 * 64 * 64 * 64 * 4
    assert tests["test_it.py::test_nothing"] == {"seconds": 0.0, "peak_bytes": 0}
    # Order and number of processes do not matter: what a test uses is its own.
    for options in (["-n", "2"], ["-k", "3 or nothing"], []):
        same = suite(GROWS, "--chip", "t4", "--chip-baseline", "base.json", "--chip-max-memory", "0%", *options)
        assert same.returncode == 0 and "compared" in same.stdout, same.stdout
    monkeypatch.setenv("SIZE", "80")
    grown = suite(GROWS, "--chip", "t4", "--chip-baseline", "base.json")
    assert grown.returncode == 1 and "4 failed, 1 passed" in grown.stdout, grown.stdout
    assert "baseline base.json: 5 tests compared" in grown.stdout
    assert "t4: time: the test is " in grown.stdout and "slower than its baseline (" in grown.stdout
    assert "t4: memory: the test holds " in grown.stdout and "5% is allowed" in grown.stdout
    again = suite(GROWS, "--chip", "t4", "--chip-baseline", "base.json", "--chip-baseline-update", "-k", "product")
    assert again.returncode == 0
    assert "test_it.py::test_nothing" in json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))["tests"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no baseline of --chip-baseline"),
        ('{"schema": 1, "chip": "l4", "host": "xeon-8275cl", "tests": {}}', "is of l4 with host xeon-8275cl"),
        ('{"schema": 1, "chip": "t4", "host": "xeon-8275cl", "tests": {"a": {"seconds": 1.0}}}', "tests.a.peak_bytes"),
        (None, "there is no such baseline"),
    ],
)
def test_unusable_baseline_is_refused(suite: Run, tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "base.json").write_text(text, encoding="utf-8")
    done = suite(FINE, "--chip", "t4", "--chip-baseline", "base.json")
    assert done.returncode == 4 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


NEEDS = """
import pytest
import torch
from torch.utils import cpp_extension


@pytest.fixture
def handle():
    return torch.cuda.current_blas_handle()


def test_runtime():
    torch.cuda.cudart().cudaProfilerStart()


def test_collectives():
    torch.cuda.nccl.all_reduce([torch.ones(4, device="cuda")])


def test_fixture(handle):
    assert handle


def test_extension(tmp_path):
    cpp_extension.load_inline("own", "", cuda_sources="__global__ void f() {}", build_directory=str(tmp_path))


def test_graph():
    value = torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value += 1
    graph.replay()
    assert value.sum().item() == 4
"""


def test_what_only_nvidia_has_is_skipped(suite: Run) -> None:
    done = suite(NEEDS, "--chip", "t4", "--chip-cuda", "-rs")
    assert done.returncode == 0 and "1 passed, 4 skipped" in done.stdout, done.stdout
    assert "not on t4: torch.cuda.cudart is CUDA's own runtime, which the chip does not have" in done.stdout


@pytest.mark.slow
def test_project_settings_choose_chip_and_limits(suite: Run, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.bringup]\nchip = "l4"\nmax_memory = "1KiB"\nsanitize = "race"\n', encoding="utf-8")
    done = suite(FINE)
    assert done.returncode == 1 and "chip l4" in done.stdout, done.stdout
    assert "l4: budget: tensors hold " in done.stdout and "exceeds --max-memory by" in done.stdout
    project.write_text('[tool.bringup]\nchip = "l4"\nsanitize = "race"\n', encoding="utf-8")
    only = suite(SUITE)
    assert "findings: memory 1, race 1, sync 1, time 1" in only.stdout, only.stdout  # budgets are the tests' own
    other = suite(FINE, "--chip", "t4")
    assert other.returncode == 0 and "chip t4" in other.stdout
    none = suite(SUITE, "--chip", "none")
    assert "8 passed" in none.stdout and "chip l4" not in none.stdout, none.stdout
    project.write_text('[tool.bringup]\nchp = "l4"\n', encoding="utf-8")
    wrong = suite(FINE)
    assert wrong.returncode == 4 and "has no key 'chp': did you mean chip?" in wrong.stderr


def test_junit_has_time_and_memory(suite: Run, tmp_path: Path) -> None:
    suite(FINE, "--chip", "t4", "--junitxml", "junit.xml")
    text = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert all(f'<property name="bringup_{name}" value="' in text for name in ("launches", "seconds", "peak_bytes"))
    assert '<property name="bringup_findings" value="[]"' in text


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        ('chip = "t4"\nhost_clock = "moddelled"', (), "host_clock must be modelled or measured, got 'moddelled'"),
        ('chip = "t4"', ("--chip-max-slower", "1%"), "--chip-max-slower needs --chip-baseline FILE"),
        ('chip = "t4"', ("--chip-baseline", "no/b.json", "--chip-baseline-update"), "no/b.json: cannot be written"),
        ("", ("--chip-max-memory", "1%"), "--chip-max-memory needs --chip NAME"),
    ],
)
def test_mistakes_are_told_before_the_tests(
    suite: Run, tmp_path: Path, table: str, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.bringup]\n{table}\n", encoding="utf-8")
    done = suite(FINE, *options)
    assert done.returncode == 4 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_first_chip_of_the_settings_is_that_of_the_tests(suite: Run, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.bringup]\nchip = "t4,l4"\n', encoding="utf-8")
    done = suite(FINE)
    assert done.returncode == 0 and "chip t4" in done.stdout, done.stdout
