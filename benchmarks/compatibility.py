"""Public models on the chip: forward and training step, eager and torch.compile, against the CPU.

Run ``python benchmarks/compatibility.py``: one process per model, some 30 minutes on two cores. ``--only NAME,...``
picks models, ``--jobs`` runs several at once. Models are built from their configurations with random weights, so
nothing is fetched. The table that it printed last: docs/libraries.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

CASES = ("forward", "training step", "forward compiled", "training step compiled")
TOLERANCE = 1e-3  # of the largest value; float32 through some ten layers
SECONDS = 900  # for one model

Batch = dict[str, torch.Tensor]
Compiler = Callable[[torch.nn.Module], Any]

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IMAGE = {**{key: TEXT[key] for key in list(TEXT)[:4]}, "image_size": 32}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 64, "n_layer": 2, "n_head": 4, **TEXT}, "text"),
    "llama": ("AutoModelForCausalLM", GROUPED, "text"),
    "mistral": ("AutoModelForCausalLM", GROUPED, "text"),
    "mixtral": ("AutoModelForCausalLM", {**GROUPED, "num_local_experts": 4}, "text"),
    "qwen2": ("AutoModelForCausalLM", GROUPED, "text"),
    "qwen3": ("AutoModelForCausalLM", {**GROUPED, "head_dim": 16}, "text"),
    "gemma": ("AutoModelForCausalLM", {**GROUPED, "head_dim": 16}, "text"),
    "gemma2": ("AutoModelForCausalLM", {**GROUPED, "head_dim": 16}, "text"),
    "phi": ("AutoModelForCausalLM", TEXT, "text"),
    "opt": ("AutoModelForCausalLM", {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}, "text"),
    "gpt_neox": ("AutoModelForCausalLM", TEXT, "text"),
    "bloom": ("AutoModelForCausalLM", {**TEXT, "n_layer": 2, "n_head": 4}, "text"),
    "falcon": ("AutoModelForCausalLM", TEXT, "text"),
    "stablelm": ("AutoModelForCausalLM", GROUPED, "text"),
    "olmo": ("AutoModelForCausalLM", GROUPED, "text"),
    "granite": ("AutoModelForCausalLM", GROUPED, "text"),
    "mamba": ("AutoModelForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500}, "text"),
    "bert": ("AutoModelForMaskedLM", TEXT, "text"),
    "roberta": ("AutoModelForMaskedLM", TEXT, "text"),
    "distilbert": ("AutoModelForMaskedLM", {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}, "text"),
    "albert": ("AutoModelForMaskedLM", {**TEXT, "embedding_size": 32}, "text"),
    "electra": ("AutoModelForMaskedLM", {**TEXT, "embedding_size": 32}, "text"),
    "mpnet": ("AutoModelForMaskedLM", TEXT, "text"),
    "deberta-v2": ("AutoModelForMaskedLM", {**TEXT, "relative_attention": True}, "text"),
    "modernbert": ("AutoModelForMaskedLM", {**TEXT, "reference_compile": False}, "text"),
    "t5": ("AutoModelForSeq2SeqLM", {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4}, "pair"),
    "bart": (
        "AutoModelForSeq2SeqLM",
        {
            **{"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 500},
            **{"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        },
        "pair",
    ),
    "vit": ("AutoModelForImageClassification", {**IMAGE, "patch_size": 8}, "image"),
    "beit": ("AutoModelForImageClassification", {**IMAGE, "patch_size": 8}, "image"),
    "dinov2": ("AutoModelForImageClassification", {**IMAGE, "patch_size": 8}, "image"),
    "convnext": ("AutoModelForImageClassification", {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}, "image"),
    "resnet": (
        "AutoModelForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
        "image",
    ),
    "swin": (
        "AutoModelForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        "image",
    ),
    "segformer": ("AutoModelForSemanticSegmentation", {"hidden_sizes": [8, 16, 32, 64], "depths": [1] * 4}, "image"),
}
TIMM = (
    *("resnet18", "resnet26d", "seresnet18", "densenet121", "regnetx_002", "regnety_002", "efficientnet_b0"),
    *("mobilenetv2_050", "mobilenetv3_small_050", "mnasnet_small", "ghostnet_050", "convnext_atto", "convnextv2_atto"),
    *(
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "mixer_s32_224",
        "gmlp_ti16_224",
        "levit_128s",
        "edgenext_xx_small",
    ),
    *("mobilevit_xxs", "poolformer_s12", "repvgg_a0"),
)


def main() -> None:
    """Run all models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_compare(options.one)))
        return
    names = options.only.split(",") if options.only else [*TRANSFORMERS, *TIMM]
    done = 0
    print(f"{'model':24}" + "".join(f"{case:>24}" for case in CASES), flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, results in zip(names, pool.map(_in_process, names), strict=True):
            done += sum(results[case].startswith("equal") for case in CASES)
            print(f"{name:24}" + "".join(f"{results[case]:>24}" for case in CASES), flush=True)
    total = len(names) * len(CASES)
    print(f"{done} of {total} equal the CPU's results: {done / total:.1%} (bar 95 %)")


def _in_process(name: str) -> dict[str, str]:
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(CASES, "time limit")
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return dict.fromkeys(CASES, (done.stderr.strip().splitlines() or ["no output"])[-1][:22])


def _compare(name: str) -> dict[str, str]:
    torch.manual_seed(0)
    model, batch = _built(name)
    for module in model.modules():  # nothing random, and statistics as in training
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
            module.p = module.drop_prob = 0.0  # type: ignore[assignment]
        if hasattr(module, "drop_rate"):  # of timm, for torch.nn.functional.dropout
            module.drop_rate = 0.0  # type: ignore[assignment]
    expected = {"forward": _forward(model, batch), "training step": _trained(copy.deepcopy(model), batch)}
    on_batch = {key: value.to("chip") for key, value in batch.items()}
    found = {}
    for case in CASES:
        what = case.removesuffix(" compiled")
        on_chip = copy.deepcopy(model).to("chip")
        torch._dynamo.reset()
        try:
            run = _forward if what == "forward" else _trained
            compiler = torch.compile if "compiled" in case else None
            found[case] = _verdict(expected[what], run(on_chip, on_batch, compiler))
            if found[case].startswith("off"):  # wrong, or rounding that batch norms of a few pixels blow up?
                torch._dynamo.reset()
                exact = run(copy.deepcopy(model).double(), _double(batch))
                again = _verdict(exact, run(copy.deepcopy(model).double().to("chip"), _double(on_batch), compiler))
                found[case] = f"{again} in float64"
        except Exception as error:  # the table says so, the other cases go on
            found[case] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:23]
            print(name, case, error, file=sys.stderr)
    return found


def _double(batch: Batch) -> Batch:
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def _verdict(expected: list[torch.Tensor], found: list[torch.Tensor]) -> str:
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        scale = one.abs().max().item() or 1.0
        worst = max(worst, (one - other.cpu()).abs().max().item() / scale)
    return "equal" if worst <= (TOLERANCE if one.dtype != torch.float64 else 1e-6) else f"off by {worst:.1e}"


def _forward(model: torch.nn.Module, batch: Batch, compiler: Compiler | None = None) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return [_first((compiler(model) if compiler else model)(**batch))]


def _trained(model: torch.nn.Module, batch: Batch, compiler: Compiler | None = None) -> list[torch.Tensor]:
    model.train()
    run, optimizer = compiler(model) if compiler else model, torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = _first(run(**batch)).pow(2).mean()
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    optimizer.step()
    return [loss.detach(), norm, _first(run(**batch)).detach()]


def _first(made: Any) -> torch.Tensor:
    if isinstance(made, torch.Tensor):
        return made
    if isinstance(made, (tuple, list)):
        return _first(made[0])
    return made.logits  # type: ignore[no-any-return]


def _built(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    _let_torchvision_import()
    if name in TIMM:
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=10)
        side = model.default_cfg["input_size"][-1] if "224" in name or "levit" in name else 64
        return model, {"x": torch.randn(2, 3, side, side)}
    import transformers

    transformers.logging.set_verbosity_error()
    kind, settings, inputs = TRANSFORMERS[name]
    config = transformers.AutoConfig.for_model(name, **settings)
    config.use_cache = False
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    model = getattr(transformers, kind).from_config(config)
    tokens = torch.randint(3, min(getattr(config, "vocab_size", 500), 500), (2, 16))
    if inputs == "text":
        return model, {"input_ids": tokens}
    if inputs == "pair":
        return model, {"input_ids": tokens, "decoder_input_ids": tokens}
    side = getattr(config, "image_size", 64)
    return model, {"pixel_values": torch.randn(2, 3, side, side)}


def _let_torchvision_import() -> None:
    """A torchvision for another build of torch cannot load its operators: define the two that its Python asks for."""
    import importlib.util

    if importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # it is there
            return
    _kept.append(library)


_kept: list[Any] = []


if __name__ == "__main__":
    start = time.perf_counter()
    main()
