"""``bringup fit --model`` and the options that ``bringup fit`` shares with ``bringup run``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bringup.analyse import model_memory, models
from bringup.analyse.holders import Storages
from bringup.errors import BringupError

Refused = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = {
    **{"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 500, "n_positions": 128},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def fit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bringup", "fit", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_the_memory_of_a_model_by_its_configuration(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    options = ("--train", "--dtype", "fp32", "--batch", "2", "--tokens", "64", "--chips", "edge8,t4", "--json")
    done = fit(tmp_path, "--model", "config.json", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    width, words, positions, layers = 64, 500, 128, 2
    block = 12 * width * width + 13 * width  # four products with biases, two norms
    parameters = words * width + positions * width + layers * block + 2 * width
    assert [row["chip"] for row in rows] == ["edge8", "t4"] and all(row["fits"] == "yes" for row in rows)
    for row in rows:
        assert row["weights_bytes"] == pytest.approx(4 * parameters, rel=0.02)  # blocks are multiples of 512 bytes
        assert row["gradients_bytes"] == pytest.approx(4 * parameters, rel=0.02)
        assert row["optimizer_bytes"] == pytest.approx(8 * parameters, rel=0.05)
        assert row["peak_bytes"] > row["weights_bytes"] + row["optimizer_bytes"]
        assert row["largest_tokens"] == positions and row["largest_batch"] > 1000
    ratio = rows[1]["largest_batch"] / rows[0]["largest_batch"]
    room = [row["capacity_bytes"] - row["context_bytes"] for row in rows]
    assert ratio == pytest.approx(room[1] / room[0], rel=0.02)


def test_mistakes_with_models_are_one_sentence(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "heads.json").write_text(json.dumps({**SMALL, "n_head": 3}), encoding="utf-8")
    for arguments, words in (
        (("--model", "no/such-model", "--chips", "t4"), "--model no/such-model: not the path of a config.json"),
        (("--model", "broken.json", "--chips", "t4"), "broken.json: is not JSON"),
        (("--model", "other.json", "--chips", "t4"), "model_type or architecture is missing"),
        (("--model", "gpt2", "--vary", "--batch"), "--vary and --model exclude each other"),
        (("train.py", "--chips", "t4", "--train"), "--train and a script exclude each other"),
        (("--model", "gpt2", "--lora", "8"), "--lora applies to training: add --train"),
        (("train.py",), "bringup fit needs --chips"),
        ((), "bringup fit needs SCRIPT, or --model"),
    ):
        done = refused("fit", *arguments)
        assert (done.returncode, done.stdout) == (2, "") and words in done.stderr, (arguments, done.stderr)
    done = fit(tmp_path, "--model", "heads.json", "--chips", "t4")  # it uses the chip, as the test's process does
    assert (done.returncode, done.stdout) == (2, "") and "GPT2LMHeadModel cannot be built: " in done.stderr, done.stderr


def test_models_of_timm_have_names_and_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[tuple[str, dict[str, object]]] = []
    stand_in = {
        "__version__": "1.0",
        "is_model": lambda name: name == "resnet18",
        "list_models": lambda: ["resnet18"],
        "get_pretrained_cfg": lambda _: SimpleNamespace(input_size=(3, 224, 224)),
        "create_model": lambda name, **options: created.append((name, options)),
    }
    monkeypatch.setattr(models, "find_spec", lambda name: object() if name == "timm" else None)
    monkeypatch.setattr(models, "import_module", lambda _: SimpleNamespace(**stand_in))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {}}), encoding="utf-8")
    for name in ("resnet18", "timm/resnet18", str(file), str(tmp_path)):
        models.find_model(name).build()
    options: dict[str, object] = {"pretrained": False, "checkpoint_path": ""}
    assert created == [("resnet18", options)] * 2 + [("resnet18", {**options, "num_classes": 10})] * 2
    with pytest.raises(BringupError, match=r"nor is it a model of timm: did you mean resnet18\?"):
        models.find_model("resnet19")

    def broken(_: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(models, "import_module", broken)
    with pytest.raises(
        BringupError, match=r"timm, which cannot be imported \(operator torchvision::nms does not exist\)"
    ):
        models.find_model("resnet18")


def test_speech_models_have_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "whisper"}), encoding="utf-8")
    model = models.find_model(str(file))
    assert (model.title, model.most_tokens) == ("WhisperForConditionalGeneration", 448)


def test_the_order_of_frees_between_two_allocations_is_no_matter() -> None:
    def held(*freed: int) -> Storages:
        same = np.zeros(2, dtype=np.int64)
        return Storages(0, np.asarray([0, 1]), np.asarray(freed), same + 512, same, same, 0)

    assert np.array_equal(model_memory._lives(held(2, 3)), model_memory._lives(held(3, 2)))


def test_fit_runs_modules_and_programs_that_say_cuda(tmp_path: Path) -> None:
    text = "import torch\nx = torch.ones(1 << 20, device='cuda')\nprint((x + x).sum().item())\n"
    (tmp_path / "sums.py").write_text(text, encoding="utf-8")
    done = fit(tmp_path, "--chips", "t4", "--cuda", "--json", "-m", "sums")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["chips"]
    assert row["fits"] and row["verdict"] == "yes" and row["peak_bytes"] >= 2 * 4 << 20
