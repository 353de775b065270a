"""Dry runs: nothing is computed, everything is recorded, and what programs read is a stand-in that they are told of."""

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup import DryWarning
from bringup.cli import main
from bringup.device.dry import DryFloat
from bringup.recording.rows import ALLOC, FREE, OF_ALLOCATOR, PARAMETERS
from tests.conftest import ROOT, without_bringup

sys.path.insert(0, str(ROOT / "benchmarks"))
from models import GPT, ResNet18

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@contextmanager
def dry(**how: Any) -> Iterator[None]:
    """A dry run whose warnings are not the test's subject."""
    with warnings.catch_warnings(), bringup.dry(**how):
        warnings.simplefilter("ignore", DryWarning)
        yield


def unknown(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="chip")


# ---- what is recorded


def resnet18() -> tuple[nn.Module, tuple[torch.Tensor, ...], Callable[..., Any]]:
    def loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    return ResNet18(), (torch.randn(2, 3, 64, 64), torch.randint(10, (2,))), loss


def gpt2_small() -> tuple[nn.Module, tuple[torch.Tensor, ...], Callable[..., Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return found

    return GPT2LMHeadModel(GPT2Config()), (torch.randint(50257, (1, 32)),), loss


@pytest.mark.parametrize("make", [resnet18, gpt2_small])
def test_dry_and_real_recordings_are_the_same(make: Callable[..., Any]) -> None:
    def recorded() -> dict[str, Any]:
        gc.collect()
        torch.chip.empty_cache()
        torch.chip.reset_peak_memory_stats()
        torch.manual_seed(0)
        model, data, loss = make()
        with bringup.record() as trace:
            model.to("chip")
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(2):
                loss(model, *(item.to("chip") for item in data)).backward()
                optimizer.step()
                optimizer.zero_grad()
        priced = bringup.price(trace, "t4")
        born = trace.columns["object"][trace.columns["kind"] == ALLOC]
        ours = (trace.columns["kind"] != FREE) | np.isin(trace.columns["object"], born)  # not another test's
        ours &= trace.columns["flags"] & OF_ALLOCATOR == 0  # which may wait for memory of tests before
        ops = [trace.signature_data[i] for i in trace.columns["signature"] if i >= 0]
        return {
            "launches": ops,
            "kinds": trace.columns["kind"][ours].tolist(),
            "allocated": torch.chip.max_memory_allocated(),
            "reserved": torch.chip.max_memory_reserved(),
            "memory": priced.memory,
            "seconds": priced.step_seconds,
        }

    with dry():
        without = recorded()
    real = recorded()
    assert without == real
    assert real["memory"].peak_bytes == real["allocated"] and real["memory"].reserved_bytes == real["reserved"]


def test_a_fallback_is_recorded_and_not_computed() -> None:
    torch.ops.bringup.set_fallbacks(["aten::exp"], [1 << 6], False)  # float32
    try:
        with dry(), bringup.record() as trace:
            torch.exp(torch.empty(1 << 24, device="chip"))
    finally:
        torch.ops.bringup.set_fallbacks([], [], False)
    assert trace.columns["flags"][trace.columns["kind"] == 0].tolist() == [4]
    assert trace.columns["kind"].tolist().count(1) == trace.columns["kind"].tolist().count(6) == 0, "no copy, no wait"


def test_a_model_larger_than_this_machine_takes_no_memory(python: Python) -> None:
    done = python(
        "import bringup, torch\n"
        "bringup.use('mi300x')\n"
        "with bringup.dry():\n"
        "    layers = [torch.nn.Linear(32768, 32768, device='chip', dtype=torch.bfloat16) for _ in range(80)]\n"
        "    x = torch.randn(1024, 32768, device='chip', dtype=torch.bfloat16)\n"
        "    with torch.no_grad():\n"
        "        for layer in layers: x = layer(x)\n"
        "resident = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(torch.chip.max_memory_allocated() >> 30, int(resident.split()[1]) < 1 << 20)\n"
    )
    assert done.stdout.split() == ["160", "True"], done.stderr


# ---- what is read


def test_token_numbers_masks_and_positions_are_real() -> None:
    with warnings.catch_warnings(), bringup.dry():
        warnings.simplefilter("error")
        ids = torch.tensor([[5, 6, 0], [7, 0, 0]]).to("chip")
        mask = ids != 0
        assert (ids + torch.arange(3, device="chip")).tolist() == [[5, 7, 2], [7, 1, 2]]
        assert mask.sum(1).tolist() == [2, 1]
        assert ids[mask].tolist() == [5, 6, 7]
        assert mask.nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]
        assert nn.functional.one_hot(ids, 8).argmax(-1).tolist() == ids.tolist()
        assert torch.cat([ids, ids[:, :1]], 1)[1, -1].item() == 7


def test_a_number_is_the_value_and_says_that_it_is_dry() -> None:
    with dry():
        loss = nn.Linear(4, 4, device="chip")(unknown(2, 4)).sum()
        assert loss.item() == 0 and isinstance(loss.item(), float)
        assert f"{loss.item():.3f} {loss:.1f}" == "0.000 (dry) 0.0 (dry)"
        assert str(loss.item() * 2 + 1) == "1.0 (dry)" and repr(round(loss.item() + 0.126, 2)) == "0.13 (dry)"
        assert json.dumps(loss.item()) == "0.0", "files that machines read stay numbers"
        assert "dry)" in repr(loss) and "(dry)" not in repr(loss)
        assert [type(item) for item in unknown(2).tolist()] == [DryFloat, DryFloat]
    with dry(value=2.5):
        assert unknown(3).sum().item() == 2.5
        assert unknown(3).cpu().tolist() == [2.5, 2.5, 2.5]
    assert type(torch.ones(1, device="chip").item()) is float, "after the block numbers are plain"


def test_random_stand_ins_repeat_with_the_seed() -> None:
    def read(seed: int) -> list[float]:
        with dry(value="random", seed=seed):
            return [float(unknown(2).sum()), *unknown(4).cpu().tolist(), float(unknown(64).argmax())]

    assert read(1) == read(1) != read(2)
    assert all(0 <= number < 1 for number in read(3)[:-1])


def test_indices_are_in_their_range() -> None:
    with dry():
        logits = unknown(512, 10)
        for found in (logits.argmax(-1), logits.topk(3).indices, logits.sort().indices, logits.max(0).indices):
            values = found.flatten().tolist()
            assert min(values) >= 0 and max(values) < (512 if found.shape == (10,) else 10)
            assert len(set(values)) > 5
        assert 0 <= logits.argmax().item() < 5120
        assert max(logits.softmax(-1).multinomial(2).flatten().tolist()) < 10
        values, where = nn.functional.max_pool2d(unknown(1, 1, 8, 8), 2, return_indices=True)
        assert values.shape == where.shape and max(where.flatten().tolist()) < 64
        embedded = nn.Embedding(10, 4, device="chip")(logits.argmax(-1))
        assert embedded.shape == (512, 4)


def test_comparisons_are_made_with_the_value() -> None:
    with dry():
        x = unknown(8)
        assert torch.isfinite(x).all().item() and not x.isnan().any().item()
        assert (x >= 0).all().item() and not (x > 0).any().item()
        assert x.to(torch.int64).tolist() == [0] * 8
    with dry(value=3):
        assert (unknown(8) > 2).all().item()
        assert unknown(8).to(torch.int64).tolist() == [3] * 8


def test_an_unknown_mask_selects_everything() -> None:
    with dry():
        x = unknown(4, 6)
        assert x[x > 0].shape == (24,)
        assert torch.nonzero(x).shape == (24, 2)
        assert x.unique().shape == (24,)
        assert torch.masked_select(x, x > 0).sum().shape == ()
        large = unknown(1 << 24) > 0
        assert large.nonzero().shape == (1 << 24, 1)


def test_a_grad_scaler_and_clipping_step_as_usual() -> None:
    with dry():
        model = nn.Linear(4, 4, device="chip")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("chip")
        for _ in range(2):
            scaler.scale(model(unknown(2, 4)).sum()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            with bringup.record() as trace:
                scaler.step(optimizer)
                scaler.update()
        assert any("_foreach_add_" in data["op"] for data in trace.signature_data), "the optimizer was not skipped"


def test_a_read_warns_once_per_line() -> None:
    with warnings.catch_warnings(record=True) as seen, bringup.dry():
        warnings.simplefilter("always")
        for _ in range(3):
            unknown(2).sum().item()
        assert unknown(9).argmax().item() < 9
    own = [item for item in seen if item.category is DryWarning]
    assert len(own) == 2 and all(item.filename.endswith("test_dry.py") for item in own)
    assert own[1].lineno - own[0].lineno == 1
    assert "float32[] was not computed (dry run)" in str(own[0].message)


def test_strict_raises_at_the_line_and_goes_on() -> None:
    with bringup.dry(strict=True):
        assert torch.tensor([3]).to("chip").item() == 3
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"test_dry\.py:\d+ reads float32\[\] from the chip, which a dry run"
            ):
                unknown(2).sum().item()
        with pytest.raises(RuntimeError, match="reads aten::nonzero of float32"):
            unknown(2).nonzero()
        assert unknown(2).sum().shape == ()


def test_a_stand_in_of_an_unknown_kind_is_refused() -> None:
    with (
        pytest.raises(bringup.BringupError, match="value must be a number or 'random', got 'zero'"),
        bringup.dry(value="zero"),
    ):  # type: ignore[arg-type]
        pass


# ---- weights


def test_weights_need_no_memory_and_no_reading(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    saved = {"weight": torch.full((256, 256), 7.0), "steps": torch.tensor([3])}
    safetensors.save_file(saved, tmp_path / "model.safetensors")
    torch.save(saved, tmp_path / "model.pt")
    with dry():
        with torch.device("chip"):
            made = nn.Linear(256, 256)
        skipped = nn.utils.skip_init(nn.Linear, 256, 256, device="chip")
        with torch.device("meta"):
            model = nn.Linear(256, 256, bias=False)
        model.to_empty(device="chip")
        mapped_file = safetensors.load_file(
            tmp_path / "model.safetensors"
        )  # maps the file; refuses devices it does not know
        loaded = {name: value.to("chip") for name, value in mapped_file.items()}
        model.load_state_dict({"weight": loaded["weight"]})
        mapped = torch.load(tmp_path / "model.pt", mmap=True, map_location="chip", weights_only=True)
        for layer in (made, skipped, model):
            assert layer(unknown(2, 256)).device.type == "chip"
        assert loaded["weight"].shape == mapped["weight"].shape == (256, 256)
        assert loaded["steps"].item() == mapped["steps"].item() == 3
        assert loaded["weight"][0, 0].item() == 0


def test_predict_runs_dry_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []

    def train(x: torch.Tensor) -> None:
        seen.append(torch.ops.bringup.is_dry())
        model(x).square().sum().backward()

    found = bringup.predict(model, torch.randn(2, 4), chip="t4")
    assert found.dry and found.launches > 0
    assert all(
        value.device.type == "cpu" and torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )
    assert not bringup.predict(lambda x: x + 1, torch.ones(2), chip="t4", dry=False).dry
    model.to("chip")
    bringup.predict(train, torch.randn(2, 4), chip="t4")
    assert seen == [True]


# ---- memory


def training(batch: int = 64) -> bringup.Trace:
    """Two steps of eight blocks of two layers, recorded dry."""
    gc.collect()
    torch.chip.empty_cache()
    with dry(), bringup.record() as trace:
        model = GPT(layers=8, tokens=64, words=1000).to("chip")
        steps = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(2):
            ids = torch.zeros(batch, 64, dtype=torch.int64).to("chip")
            model(ids).logsumexp(-1).sum().backward()
            steps.step()
            steps.zero_grad()
    return trace


def test_owners_of_the_peak_add_up() -> None:
    used = bringup.price(training(), "t4").memory
    kinds: dict[str, int] = {}
    for owner in used.owners:
        kinds[owner.kind] = kinds.get(owner.kind, 0) + owner.bytes
    assert sum(kinds.values()) == used.peak_bytes
    assert 0 <= used.free_bytes <= used.reserved_bytes - used.peak_bytes
    parameters = kinds["parameters"]
    assert kinds["optimizer state"] == pytest.approx(2 * parameters, rel=0.01)
    assert kinds["activations"] > parameters
    assert used.at is not None and used.at.phase == "backward" and used.at.step == 1
    assert {owner.module.split(".")[0] for owner in used.owners if owner.kind == "activations"} & {"blocks"}


def test_a_cache_of_keys_is_kept_between_calls() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(64, 64)
            self.keys: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            key = self.project(x)
            self.keys = key if self.keys is None else torch.cat([self.keys, key], 1)
            return self.keys.sum(1, keepdim=True)

    with dry(), bringup.record() as trace, torch.no_grad():
        model = Attention().to("chip")
        x = unknown(8, 1, 64)
        for _ in range(16):
            x = model(x)
    kept = [owner for owner in bringup.price(trace, "t4").memory.owners if owner.kind == "kept between calls"]
    assert kept and kept[0].module in ("Attention", "")


def small_chip(tmp_path: Path, mebibytes: int) -> str:
    """An edge8 with less memory."""
    text = (ROOT / "src" / "bringup" / "machine" / "chips" / "edge8.toml").read_text(encoding="utf-8")
    lines = [
        f"device_gib = {mebibytes / 1024}" if line.startswith("device_gib") else line for line in text.splitlines()
    ]
    file = tmp_path / "small.toml"
    file.write_text("\n".join(lines).replace('name = "edge8"', 'name = "small"'), encoding="utf-8")
    return str(file)


def test_ways_to_fit_are_what_their_runs_need(tmp_path: Path) -> None:
    whole = bringup.price(training(64), "t4")
    chip = small_chip(tmp_path, int(whole.peak_bytes * 0.6) >> 20)
    found = bringup.price(training(64), chip)
    assert not found.fits and 1 <= len(found.ways_to_fit) <= 3
    batch = next(way for way in found.ways_to_fit if way.change.startswith("batch"))
    smaller = int(batch.change.split()[1])
    assert batch.fits and batch.saved_bytes > 0
    really = bringup.price(training(smaller), chip)
    assert really.fits
    free = found.memory.free_bytes
    assert really.peak_bytes == pytest.approx(batch.peak_bytes - free, rel=0.05)
    assert 64 % smaller == 0 and 4 * smaller >= 64  # the largest whole part within the estimate
    checkpointed = next(way for way in found.ways_to_fit if way.change.startswith("activation checkpointing of blocks"))
    assert checkpointed.step_seconds > found.step_seconds


def test_a_smaller_optimizer_state_and_shards_are_what_they_say() -> None:
    from bringup.analyse import holders as memory
    from bringup.analyse import ways_to_fit as fitting

    trace = training(1)
    every = memory.storages(trace, 0)
    state = int(every.bytes[every.kind == memory.OPTIMIZER_STATE].sum())
    parameters = int(every.bytes[every.kind == PARAMETERS].sum())
    change = next(fitting._smaller_state(trace, every))
    assert (every.bytes * (1 - change.scale)).sum() == pytest.approx(0.7495 * state, rel=1e-3)
    priced = bringup.price(trace, "t4")
    two = next(fitting._sharded(priced.timeline, every))
    gradients = int(every.bytes[every.kind == memory.GRADIENTS].sum())
    assert (every.bytes * (1 - two.scale)).sum() == pytest.approx((parameters + state + gradients) / 2, rel=1e-6)
    assert two.extra_seconds == pytest.approx(1.5 * parameters / (priced.timeline.chip.link.d2h_gb_s * 1e9), rel=0.01)


def test_a_smaller_batch_of_a_peak_elsewhere_does_not_help() -> None:
    from bringup.analyse import holders as memory
    from bringup.analyse import ways_to_fit as fitting

    trace = training(1)
    every = memory.storages(trace, 0)
    none = fitting._smaller_batch(bringup.price(trace, "t4").timeline, bringup.price(trace, "t4").summary, every, 0)
    assert list(none) == [], "a batch of one cannot shrink"


# ---- the command line

PROGRAM = """
import os, sys
import torch
from torch import nn
batch = int(sys.argv[sys.argv.index("--batch") + 1]) if "--batch" in sys.argv else int(os.environ.get("BATCH", "8"))
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).to("chip")
for step in range(2):
    loss = model(torch.randn(batch, 2048).to("chip")).sum()
    loss.backward()
    print(f"loss {loss.item():.2f}")
"""


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Command:
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")

    def command(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "bringup", *arguments],
            cwd=tmp_path,
            env=without_bringup(),
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return command


def test_run_dry_says_so(run: Command, tmp_path: Path) -> None:
    code, out, err = run("run", "--dry", "--chip", "t4", "train.py")
    assert code == 0, err
    assert out.startswith("loss 0.00 (dry)\nloss 0.00 (dry)\n") and "dry run: nothing was computed" in out
    assert err.count("DryWarning") == 1 and "train.py:10: DryWarning: float32[] was not computed" in err
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert summary["dry"] is True and summary["memory"]["at"]["phase"] == "backward"
    assert {"kind", "module", "bytes"} == set(summary["memory"]["owners"][0])
    again, out, err = run("run", "--dry", "--dry-value", "1.5", "--chip", "t4", "train.py")
    assert again == 0 and out.startswith("loss 1.50 (dry)")


def test_run_dry_strict_is_an_error_at_the_line(run: Command) -> None:
    code, _, err = run("run", "--dry=strict", "--chip", "t4", "train.py")
    assert code == 1 and "BringupError: train.py:10 reads float32[] from the chip" in err
    code, _, err = run("run", "--dry=loose", "train.py")
    assert code == 2 and err.startswith("bringup: ") and "stand-in" in err
    code, _, err = run("run", "--dry", "--dry-value", "much", "train.py")
    assert (code, err) == (2, "bringup: --dry-value must be a number or random, got 'much'\n")


def test_run_leaves_the_program_its_own_dry_argument(run: Command, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    _, out, _ = run("run", "--chip", "t4", "show.py", "--dry", "--dry=strict")
    assert out.startswith("['--dry', '--dry=strict']")


def test_out_of_memory_is_a_report(run: Command, tmp_path: Path) -> None:
    chip = small_chip(tmp_path, 256)
    code, out, err = run("run", "--dry", "--chip", chip, "train.py")
    assert code == 1 and "torch.OutOfMemoryError" in err
    assert "does not fit" in out and "run it with --oom=continue" in out
    code, out, err = run("run", "--dry", "--oom", "continue", "--chip", chip, "train.py", "--batch", "4096")
    assert code == 0, err
    assert err.count("would be out of memory here: train.py:8: requested 32.00 MiB of 256.00 MiB; going on") == 1
    assert "does not fit" in out and "fullest in step 2 of 2, backward pass" in out
    assert "parameters" in out and "activations" in out and "-> " in out
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert summary["peak_bytes"] > 256 << 20 and not summary["fits"] and summary["ways_to_fit"]
    assert summary["memory"]["reserved_bytes"] >= summary["peak_bytes"]
    page = (tmp_path / "bringup-train" / "report.html").read_text(encoding="utf-8")
    assert "to make it fit" in page and "largest modules" in page


def test_oom_continue_works_when_computing_too(run: Command, tmp_path: Path) -> None:
    code, out, err = run("run", "--oom=continue", "--chip", small_chip(tmp_path, 200), "train.py")
    assert code == 0, err
    assert "going on (--oom=continue)" in err and "does not fit" in out


def test_fit_names_the_chips_that_hold_it(run: Command, tmp_path: Path) -> None:
    chip = small_chip(tmp_path, 256)
    code, out, err = run("fit", "train.py", "--chips", f"{chip},t4", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(item["chip"], item["fits"], item["largest"]) for item in found["chips"]] == [
        ("small", False, None),
        ("t4", True, None),
    ]
    assert found["chips"][0]["ways_to_fit"] and found["chips"][1]["step_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("vary", ["--batch", "BATCH"])
def test_fit_finds_the_largest_batch(run: Command, tmp_path: Path, vary: str) -> None:
    code, out, err = run("fit", "train.py", "--chips", small_chip(tmp_path, 384), "--vary", vary, "--json")
    assert code == 0, err
    largest = json.loads(out)["chips"][0]["largest"]
    assert largest["fits"] and largest["value"] > 64 and largest["reserved_bytes"] <= 384 << 20
    tried = [line for line in err.splitlines() if line.startswith(vary)]
    assert len(tried) < 16, "the search follows the memory, it does not try every number"
    failed = [value for line in tried if (value := int(line.split()[1].rstrip(":"))) > largest["value"]]
    assert min(failed) - largest["value"] <= max(1, largest["value"] // 100)


def test_fit_refuses_what_it_cannot_use(run: Command, tmp_path: Path) -> None:
    for arguments, words in (
        (("fit", "nope.py", "--chips", "t4"), "nope.py: there is no such script"),
        (("fit", "train.py", "--chips", "t5"), "t5"),
        (("fit", "train.py", "--chips", ","), "names no chip"),
        (("run", "--chip", ",", "train.py"), "--chip names no chip"),
        (("fit", "train.py", "--chips", "t4", "--vary", "--"), "--vary must be an argument"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err, err
    (tmp_path / "broken.py").write_text("raise SystemExit('no data here')", encoding="utf-8")
    code, _, err = run("fit", "broken.py", "--chips", "t4")
    assert code == 2 and "broken.py ends with exit code 1 in a dry run: no data here" in err


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bringup", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "fit " in capsys.readouterr().out


def test_tensors_of_a_program_without_modules_are_not_all_parameters() -> None:
    with dry(), bringup.record() as trace:
        plain = torch.ones(1 << 20, device="chip")
        total = plain + plain
        del plain
    used = bringup.price(trace, "t4").memory
    assert {owner.kind for owner in used.owners if owner.kind != "held before the recording"} == {
        "tensors outside modules"
    }
    assert sum(owner.bytes for owner in used.owners) == used.peak_bytes
    del total
