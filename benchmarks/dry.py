"""Dry runs: launches per second recorded and priced, against running; large models in seconds and megabytes.

Run ``python benchmarks/dry.py``; needs ``pip install bringup[models]``. Figures and method: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

CHIP = "mi300x"


def loop(launches: int) -> dict[str, float]:
    """Record a plain loop of four operators dry, and price it; the seconds of both."""
    import torch

    import bringup

    bringup.use(CHIP)
    rates = []
    with bringup.dry(), torch.no_grad():
        x, w = torch.randn(64, 64, device="chip"), torch.randn(64, 64, device="chip")
        norm = torch.nn.LayerNorm(64, device="chip")
        for _ in range(4):
            start = time.perf_counter()
            with bringup.record() as trace:
                for _ in range(launches // 4):
                    norm(torch.relu(x @ w) + x)
            bringup.price(trace, chip=CHIP)
            rates.append(trace.launches / (time.perf_counter() - start))
    return {"rate": statistics.median(rates[1:])}


def gpt2(size: str, batch: int, length: int, dry: bool) -> dict[str, float]:
    """Train GPT-2 one step, recorded and priced: seconds, and launches."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import bringup

    bringup.use(CHIP)
    shape = {"small": (768, 12, 12), "medium": (1024, 24, 16)}[size]
    config = GPT2Config(n_embd=shape[0], n_layer=shape[1], n_head=shape[2])
    ids = torch.randint(0, config.vocab_size, (batch, length))

    def step() -> float:
        start = time.perf_counter()
        with bringup.record() as trace:
            loss = model(input_ids=ids.to("chip"), labels=ids.to("chip")).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.chip.synchronize()  # type: ignore[attr-defined]
        bringup.price(trace, chip=CHIP)
        launches.append(trace.launches)
        return time.perf_counter() - start

    launches: list[int] = []
    with bringup.dry() if dry else torch.enable_grad():
        with torch.device("chip"):
            model = GPT2LMHeadModel(config)
        optimizer = torch.optim.AdamW(model.parameters())
        step()  # learns the signatures
        seconds = statistics.median(step() for _ in range(5 if dry else 1))
    return {"seconds": seconds, "launches": launches[-1]}


def llama(size: str, train: bool) -> dict[str, float]:
    """Construct a Llama-3 and run it once over 2,048 tokens in bfloat16, recorded and priced."""
    start = time.perf_counter()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import bringup

    width, inner, layers, heads = {"8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64)}[size]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    )
    bringup.use(CHIP, past_capacity=True)
    torch.set_default_dtype(torch.bfloat16)
    with bringup.dry(), bringup.record() as trace:
        with torch.device("chip"):
            model = LlamaForCausalLM(config)
        ids = torch.randint(0, config.vocab_size, (1, 2048)).to("chip")
        if train:
            optimizer = torch.optim.AdamW(model.parameters())
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        else:
            with torch.no_grad():
                model(ids)
    predicted = bringup.price(trace, chip=CHIP).step_seconds
    return {"seconds": time.perf_counter() - start, "predicted": predicted}


def main() -> None:
    """Measure every case in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="*", help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case:
        if case[0] == "loop":
            found = loop(int(case[1]))
        elif case[0] == "gpt2":
            found = gpt2(case[1], int(case[2]), int(case[3]), case[4] == "dry")
        else:
            found = llama(case[1], case[2] == "train")
        found["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found))
        return
    print(f"a loop of 200,000 launches: {_case('loop', '200000')['rate']:,.0f} launches/s recorded and priced")
    real = _case("gpt2", "medium", "4", "512", "real")
    dry = _case("gpt2", "medium", "4", "512", "dry")
    print(f"GPT-2 medium, training step of 4 x 512: run {real['seconds']:.1f} s, dry {dry['seconds'] * 1e3:.0f} ms,")
    print(f"  {real['seconds'] / dry['seconds']:.0f}x, with {dry['launches'] / dry['seconds']:,.0f} launches/s")
    for size, how in (("70B", "forward"), ("8B", "train")):
        found = _case("llama", size, how)
        print(
            f"Llama-3-{size} {how}, 1 x 2,048 tokens, bfloat16, from the import on: {found['seconds']:.1f} s, "
            f"{found['gib']:.2f} GiB resident; predicted {found['predicted'] * 1e3:.0f} ms on {CHIP}"
        )


def _case(*case: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--case", *case], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
