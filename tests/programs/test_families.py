"""Families of public models at their real sizes, dry: most would not fit this machine."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import without_bringup

pytest.importorskip("transformers")

PROGRAM = """
import gc, importlib.util, json, sys, warnings
import torch, transformers as T
import bringup

warnings.simplefilter("ignore")
bringup.use("mi300x", past_capacity=True)


def ids(batch, length, words=30000):
    return torch.randint(words, (batch, length)).to("chip")


def train(model, **inputs):
    optimizer = torch.optim.AdamW(model.parameters())
    model(**inputs).loss.backward()
    optimizer.step()


def forward(model, **inputs):
    with torch.no_grad():
        model(**inputs)


def generate(model, *inputs, tokens=4, **how):
    out = model.generate(*inputs, max_new_tokens=tokens, **how)
    assert out.device.type == "chip"


def labelled(batch, length):
    tokens = ids(batch, length)
    return {"input_ids": tokens, "labels": tokens}


def llama(width, inner, layers, heads):
    return T.LlamaForCausalLM(T.LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192))


def unet():
    from diffusers import UNet2DConditionModel
    return UNet2DConditionModel(cross_attention_dim=1280, sample_size=64)


def denoise(model):
    with torch.no_grad():
        for step in torch.tensor([900, 500, 100], device="chip"):
            model(torch.randn(2, 4, 64, 64, device="chip"), step, torch.randn(2, 77, 1280, device="chip"))


llama8 = lambda: llama(4096, 14336, 32, 32)
mixtral = lambda: T.MixtralForCausalLM(T.MixtralConfig())
gpt2 = lambda: T.GPT2LMHeadModel(T.GPT2Config())
whisper = lambda: T.WhisperForConditionalGeneration(T.WhisperConfig())
mamba = lambda: T.MambaForCausalLM(T.MambaConfig(num_hidden_layers=4))
labels = lambda: torch.zeros(8, dtype=torch.int64).to("chip")
cases = {
    "llama-3-70b prefill": (lambda: llama(8192, 28672, 80, 64), lambda m: forward(m, input_ids=ids(1, 2048))),
    "llama-3-8b training": (llama8, lambda m: train(m, **labelled(1, 2048))),
    "llama-3-8b generate": (llama8, lambda m: generate(m, ids(2, 128), do_sample=True, top_p=0.9)),
    "mixtral-8x7b prefill": (mixtral, lambda m: forward(m, input_ids=ids(1, 512))),
    "mixtral-8x7b generate": (mixtral, lambda m: generate(m, ids(1, 64), do_sample=False)),
    "gpt-2 training": (gpt2, lambda m: train(m, **labelled(4, 512))),
    "gpt-2 generate": (gpt2, lambda m: generate(m, ids(2, 16), num_beams=4)),
    "bert training": (lambda: T.BertForSequenceClassification(T.BertConfig()),
                      lambda m: train(m, input_ids=ids(8, 128), attention_mask=ids(8, 128) > 9, labels=labels())),
    "vit training": (lambda: T.ViTForImageClassification(T.ViTConfig()),
                     lambda m: train(m, pixel_values=torch.randn(8, 3, 224, 224).to("chip"), labels=labels())),
    "whisper training": (whisper, lambda m: train(m, input_features=torch.randn(1, 80, 3000).to("chip"),
                                                  labels=ids(1, 64, 5000))),
    "whisper generate": (whisper, lambda m: generate(m, torch.randn(1, 80, 3000).to("chip"))),
    "mamba training": (mamba, lambda m: train(m, **labelled(1, 64))),
    "mamba generate": (mamba, lambda m: generate(m, ids(1, 16))),
}
if importlib.util.find_spec("diffusers"):
    cases["unet inference"] = (unet, denoise)
half = ("llama", "mixtral")
for name, (make, run) in cases.items():
    torch.set_default_dtype(torch.bfloat16 if name.startswith(half) else torch.float32)
    found = {"name": name}
    try:
        with bringup.dry(), torch.device("chip"):
            model = make()
        parameters = sum(item.numel() for item in model.parameters())
        with bringup.dry(), bringup.record() as trace:
            run(model)
        priced = bringup.price(trace, "mi300x")
        found.update(launches=trace.launches, seconds=priced.total_seconds, peak=priced.peak_bytes,
                     unpriced=priced.unpriced, parameters=parameters)
        del model
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    model = None
    gc.collect()
    torch.chip.empty_cache()
    print("RESULT", json.dumps(found), flush=True)
resident = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("RESULT", json.dumps({"name": "resident", "bytes": int(resident.split()[1]) * 1024}))
"""
FAMILIES = (
    *(
        "llama-3-70b prefill",
        "llama-3-8b training",
        "llama-3-8b generate",
        "mixtral-8x7b prefill",
        "mixtral-8x7b generate",
    ),
    *("gpt-2 training", "gpt-2 generate", "bert training", "vit training", "whisper training", "whisper generate"),
    *("mamba training", "mamba generate"),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = tmp_path_factory.mktemp("families") / "families.py"
    script.write_text(PROGRAM, encoding="utf-8")
    environment = without_bringup()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, env=environment)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, done.stderr
    return {item["name"]: item for item in map(json.loads, lines)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_dry(found: dict[str, Any], name: str) -> None:
    result = found[name]
    assert "error" not in result, result["error"]
    assert result["launches"] > 100 and result["seconds"] > 0 and result["unpriced"] == []
    width = 2 if name.startswith(("llama", "mixtral")) else 4
    copies = 4 if name.endswith("training") else 1  # parameters, gradients, two states
    assert result["peak"] >= 0.99 * copies * width * result["parameters"]


def test_an_unet_runs_dry(found: dict[str, Any]) -> None:
    if "unet inference" not in found:
        pytest.skip("diffusers is not installed")
    assert "error" not in found["unet inference"] and found["unet inference"]["launches"] > 1000


def test_all_families_together_stay_small(found: dict[str, Any]) -> None:
    assert found["llama-3-70b prefill"]["peak"] > 130 << 30
    assert found["resident"]["bytes"] < 2 << 30
