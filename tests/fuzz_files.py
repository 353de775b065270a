"""Files of others, broken on purpose: what reads them ends in the answer or in one sentence.

    python -m tests.fuzz_files --count 20000 --seed 1                 # a campaign over every format
    python -m tests.fuzz_files --seed 1 --format trace --only 4711    # one input again, with its traceback

Input number n of a format follows from the seed and n alone. A process reads the inputs one after the other. If it
dies or hangs, the input under way is a crash or a hang, and another process goes on with the next one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import importlib.util
import io
import json
import math
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.errors import BringupError
from bringup.files import tomllib
from tests.campaign import campaign as in_processes

ROOT = Path(__file__).parent
SECONDS = 30  # for one input: the slowest take one
OUTCOMES = ("accepted", "one sentence", "traceback", "crash", "hang")
FAULTS = OUTCOMES[2:]
Value = Any
Random = random.Random

TEXTS = (
    *("", "x" * 5000, "\x1b]0;title\x07", "\u202egpj", "[/red]", "[bold]", "<script>alert(1)</script>", "a\nb"),
    *("\udcff", "\0", "nan", "-1", "../../x", "float32", "int64", "aten::mm", "triton::k", "fused::x", "aten::copy_"),
)
COUNTS = (0, 1, -1, 2, 7, 63, 64, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, -(2**62), 2**63 - 1)
NUMBERS = (*COUNTS, 2**53, 2**63, -(2**63), 2**64, 10**400, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan)
BYTES = (b"\0", b"\xff", b"9" * 5000, b"[" * 3000, b'"', b"\n", b"-", b"nan", b"1e999", b"{", b"}", b",,")


# ---- mutations


def nested(depth: int) -> Value:
    """Return lists in lists."""
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


def strange(rng: Random) -> Value:
    """Return a value that hardly belongs where it is put."""
    kind = rng.randrange(10)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7:
        return nested(rng.choice((1, 3, 30, 300)))
    return rng.choice((None, True, False, [], {}, {"tensor": -1}, {"tensor": 1}, [[]], [1, 2, 3], {"a": {"b": 1}}))


def near(rng: Random, value: Value) -> Value:
    """Return a value of the same kind that may well belong there."""
    if type(value) is int:
        return rng.choice((value + 1, max(value - 1, 0), value * 2, value * 1000, max(value // 2, 1)))
    if type(value) is float:
        return value * 10 ** rng.uniform(-4, 4)
    if isinstance(value, list):
        return rng.sample(value, len(value)) if rng.random() < 0.5 else [*value, *value]
    return strange(rng)


def places(value: Value, at: tuple[Value, ...] = ()) -> Iterator[tuple[Value, ...]]:
    """Yield the path of every value in lists and tables."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def at(value: Value, path: tuple[Value, ...]) -> Value:
    """Return the value at a path."""
    return functools.reduce(lambda inner, step: inner[step], path, value)


def mutated(rng: Random, value: Value, times: int = 3) -> Value:
    """Return a copy in which some values are changed, left out, doubled, renamed or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, times)):
        everywhere = list(places(value))
        if not everywhere:
            return strange(rng)
        path = rng.choice(everywhere)
        owner, key = at(value, path[:-1]), path[-1]
        how = rng.randrange(10)
        if how < 3:
            owner[key] = strange(rng)
        elif how < 6:
            owner[key] = near(rng, owner[key])
        elif how == 6:
            del owner[key]
        elif how == 7 and isinstance(owner, dict):
            owner[rng.choice((*TEXTS, "name", "x"))] = owner.pop(key)
        elif how == 7:
            owner[key:key] = [copy.deepcopy(owner[key])] * rng.choice((1, 2, 100))
        else:
            owner[key] = copy.deepcopy(at(value, rng.choice(everywhere)))
    return value


def mutated_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes of which some are changed, left out, doubled, or cut off."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(start + rng.choice((0, 1, 4, 30, 1000)), len(data))
        piece = data[start:end]
        how = rng.randrange(6)
        if how == 0:
            data = data[:start]
            continue
        new = (
            b"",
            piece * rng.choice((0, 2, 50)),
            bytes(rng.randrange(256) for _ in range(min(len(piece) + 1, 40))),
            rng.choice(BYTES),
            bytes(b ^ (1 << rng.randrange(8)) for b in piece[:40]) + piece[40:],
        )[how - 1]
        data = data[:start] + new + data[end:]
    return data


def as_json(value: Value) -> bytes:
    """Write JSON; a value that JSON cannot say becomes an empty text."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return b""


# ---- what reads them


def finite(text: str) -> None:
    """Read JSON that must not hold what is no number."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    json.loads(text, parse_constant=refuse)


def command(*arguments: str) -> str:
    """Run the command line here; what it prints must be fit for a terminal."""
    from bringup.cli import bringup

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        bringup.main(list(arguments), standalone_mode=False)
    hidden = [c for c in printed.getvalue() if c != "\n" and not c.isprintable()]
    assert not hidden, f"{hidden[:5]} reached the terminal"
    return printed.getvalue()


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: writes one broken input into a folder, as the random numbers have it; returns its path.
        use: does with it whatever can be done.
    """

    make: Callable[[Random, Path], Path]
    use: Callable[[Path], object]


# ---- traces and reports


@functools.cache
def recording() -> Any:
    """A small recording with most kinds of rows, and an operator of most families."""
    import torch
    from torch.nn import functional

    import bringup

    chips: Any = torch.chip  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    model.to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record(stacks=True) as trace:
        for _ in range(3):
            loss = model(torch.randn(2, 3, 8, 8).to("chip")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        side = chips.Stream()
        with side:
            q = torch.randn(1, 2, 4, 8, device="chip")
            x = functional.scaled_dot_product_attention(q, q, q).softmax(-1).flatten().topk(3).values
            event = side.record_event()
        chips.current_stream().wait_event(event)
        event.synchronize()
        x.sort().values[torch.tensor([0, 1], device="chip")].sum().item()
        functional.layer_norm(q, (8,)).cumsum(-1)
        torch.bmm(q[0], q[0].mT)
        functional.max_pool2d(q, 2)
        torch.linalg.inv(torch.eye(4, device="chip"))
    return trace


@functools.cache
def trace_file() -> str:
    """The recording as a file."""
    path = Path(tempfile.mkdtemp(prefix="bringup-fuzz-"), "t.npz")
    recording().save(path)
    return str(path)


def make_trace(rng: Random, folder: Path) -> Path:
    """Break the description, the columns, or the bytes of a trace."""
    import zipfile

    import numpy as np

    with np.load(trace_file()) as file:
        members = {name: file[name] for name in file.files}
    text = members.pop("description.json")
    how = rng.random()
    if how < 0.5:
        about = json.loads(text)
        part = rng.choice([*about, "signatures", "signatures"])
        about[part] = mutated(rng, about[part])
        text = as_json(about if rng.random() < 0.95 else mutated(rng, about))
    elif how < 0.8:
        _mutate_columns(rng, members)
    path = folder / "t.npz"
    method = rng.choice((*[zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED] * 9, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("description.json", text)
        for name, column in members.items():
            npy = io.BytesIO()
            np.save(npy, column)
            archive.writestr(f"{name}.npy", npy.getvalue())
    if how >= 0.8:
        path.write_bytes(_mutated_archive(rng, path.read_bytes()))
    return path


def _mutated_archive(rng: Random, data: bytes) -> bytes:
    """Break the bytes anywhere, or those that say how large the members are and where they lie."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, data)
    start = int.from_bytes(data[-6:-2], "little")  # of the directory, as the last record says
    return data[:start] + mutated_bytes(rng, data[start:])


def _mutate_columns(rng: Random, columns: dict[str, Any]) -> None:
    import numpy as np

    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(columns))
        numbers = columns[name].astype(np.int64)
        start = rng.randrange(len(numbers))
        end = start + rng.choice((1, 1, 3, 10**6))
        numbers[start:end] = rng.choice((rng.choice(COUNTS), int(rng.choice(numbers.tolist()))))
        dtype = columns[name].dtype
        columns[name] = numbers.astype(rng.choice((*[dtype] * 12, np.int64, np.int8, np.float32)))
    name = rng.choice(list(columns))
    if rng.random() < 0.1:
        del columns[name]
    elif rng.random() < 0.1:
        columns[name] = columns[name][rng.randrange(len(columns[name])) :]


def use_trace(path: Path) -> None:
    """Price a trace, write all files of a report, and compare."""
    import bringup
    from bringup.report import writer

    trace = bringup.Trace.load(path)
    for clock, chip in (("modelled", "t4"), ("measured", "edge8")):
        prediction = bringup.price(trace, chip, host_clock=clock)  # type: ignore[arg-type]
        writer.write(prediction, path.with_suffix(".report"))
    finite((path.with_suffix(".report") / "summary.json").read_text())
    command("compare", str(path.with_suffix(".report")), "--chips", "t4,tpu-v3,edge-tpu,gaudi2")


def make_report(rng: Random, folder: Path) -> Path:
    """Mix up the files of a report."""
    from bringup.report.directory import NEW, OUTPUTS, STAGE

    report = folder / "r"
    report.mkdir()
    ids = [rng.choice("ab") * 16 if rng.random() < 0.08 else "c" * 16 for _ in OUTPUTS]
    for name, run in zip(OUTPUTS, ids, strict=True):
        text = f'{{"run": "{run}"}}' if name != "report.html" else f'<meta name="bringup-run" content="{run}">'
        (report / name).write_bytes(mutated_bytes(rng, text.encode()) if rng.random() < 0.2 else text.encode())
    recording().about["run"] = rng.choice(("", *["c" * 16] * 9))
    recording().save(report / "trace.npz")
    name = rng.choice((*OUTPUTS, "compare.html", NEW, f"{STAGE}x", ".trace.npz.1"))
    with contextlib.suppress(FileNotFoundError):
        (report / name).unlink()
    how = rng.randrange(6)
    if how == 0:
        (report / name).mkdir()
    elif how == 1:
        (report / name).symlink_to(rng.choice((name, "nowhere", report / "summary.json", "/dev/zero")))
    elif how == 2:
        (report / name).write_bytes(rng.choice(BYTES))
    elif how == 3:
        (report / NEW).mkdir(exist_ok=True)
        (report / NEW / rng.choice((*OUTPUTS, "thesis.tex"))).write_text('{"run": "cccccccccccccccc"}')
    return report


def use_report(path: Path) -> None:
    """Read the directory, and put another report into it."""
    from bringup.report import directory

    with contextlib.suppress(BringupError):
        directory.write(directory.prepare(str(path)), {})
    command("compare", str(path), "--chips", "t4")


# ---- chips and hosts


def _make_described(kind: str) -> Callable[[Random, Path], Path]:
    def make(rng: Random, folder: Path) -> Path:
        import tomli_w

        from bringup.machine.files import CHIPS, HOSTS, available_hosts

        names = ("t4", "edge8", "tpu-v3", "wormhole-n150") if kind == "chip" else tuple(available_hosts())
        text = ((CHIPS if kind == "chip" else HOSTS) / f"{rng.choice(names)}.toml").read_bytes()
        path = folder / "mine.toml"
        if rng.random() < 0.3:
            path.write_bytes(mutated_bytes(rng, text))
            return path
        data: Value = tomllib.loads(text.decode())
        if rng.random() < 0.7:
            data = {**data, "invented": True, "sources": {}}
        if kind == "chip" and rng.random() < 0.3:
            data |= {"efficiency": {"softmax": 0.5}, "streams": {"copy": 0.5}, "kernels": {"grid": [2, 2, 2]}}
        numbers = [place for place in places(data) if type(at(data, place)) in (int, float)]
        for place in rng.sample(numbers, rng.randrange(6)):
            at(data, place[:-1])[place[-1]] = near(rng, at(data, place))
        if rng.random() < 0.4:
            data = mutated(rng, data, times=2)
        try:
            path.write_bytes(tomli_w.dumps(data).encode("utf-8", "surrogatepass"))
        except (AttributeError, RecursionError, TypeError, ValueError):  # what TOML cannot say
            path.write_bytes(mutated_bytes(rng, text))
        return path

    return make


def use_chip(path: Path) -> None:
    """Check, show and compare a chip."""
    command("chips", "check", str(path))
    command("chips", "show", str(path))
    finite(command("chips", "show", "--json", str(path)))
    command("compare", trace_file(), "--chips", f"t4,{path}", "--html", str(path.with_suffix(".html")))
    finite(command("compare", trace_file(), "--chips", str(path), "--json"))


def use_host(path: Path) -> None:
    """Compare on a host."""
    page = str(path.with_suffix(".html"))
    command("compare", trace_file(), "--chips", "t4,gaudi2", "--host", str(path), "--html", page)
    finite(command("compare", trace_file(), "--chips", "edge8", "--host", str(path), "--json"))


# ---- scorecards, measurement sets, kernels


def line(number: int, score: float) -> dict[str, Value]:
    """A line of a scorecard."""
    about = {"id": f"A{number}", "level": "D", "title": "t", "verdict": "partial", "evidence": "", "hint": ""}
    return {**about, "score": score, "seconds": 1.0}


def make_card(rng: Random, folder: Path) -> Path:
    """Break a scorecard."""
    lines = [line(number, number / 4) for number in range(4)]
    ops = {"add": {"float32": "native"}}
    text = as_json(mutated(rng, {"schema": 1, "device": "chip", "chip": "t4", "items": lines, "ops": ops}))
    path = folder / "card.json"
    path.write_bytes(mutated_bytes(rng, text) if rng.random() < 0.3 else text)
    return path


def use_card(path: Path) -> None:
    """Compare a new card with it."""
    from bringup.scorecard import card, page

    old = card.load(str(path))
    lines = [line(1, 0.9), line(2, 0.1)]
    new = {"schema": 1, "device": "chip", "chip": "t4", "items": lines, "listed": 57, "ops": {}}
    for word, was, now in card.changes(old, new):
        f"{word} {was['verdict']} {was['score']:.0%} {now['score']:.0%}"
    page.page(new, {}, old)


def make_set(rng: Random, folder: Path) -> Path:
    """Break a file of a measurement set."""
    from tests.validation.test_validation import SETS

    name = rng.choice(list(SETS))
    lines = [text.split(",") for text in SETS[name].splitlines()]
    path = folder / "sets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.7:
        row = rng.choice(lines)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(row) + 1)
            cells = [str(strange(rng))[:6000].replace("\n", " ") for _ in range(rng.choice((0, 1, 1, 1, 2)))]
            row[place : place + 1] = cells
        path.write_text("\n".join(map(",".join, lines)), "utf-8", "surrogatepass")
    else:
        path.write_bytes(mutated_bytes(rng, SETS[name].encode()))
    if name.startswith("aiconfigurator") and rng.random() < 0.5:
        about = [{"file": path.name, "constant_columns": {"latency": "1", "m": "3"}}]
        (path.parent / "FILES.json").write_bytes(as_json(mutated(rng, about)))
    return folder / "sets"


def use_set(path: Path) -> None:
    """Predict the figures."""
    command("validate", "--data", str(path), "--html", str(path / "v.html"))
    finite(command("validate", "--data", str(path), "--json"))


def mutated_lines(rng: Random, lines: list[str], words: tuple[str, ...]) -> str:
    """Return text of which lines, words or sizes are changed, left out, doubled or moved."""
    lines = list(lines)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        inside = lines[place].split(" ")
        how = rng.randrange(6)
        if how == 0 and len(lines) > 1:
            del lines[place : place + rng.choice((1, 1, 5, 10**6))]
            lines = lines or [""]
        elif how == 1:
            lines[place:place] = [rng.choice(lines)] * rng.choice((1, 2, 500))
        elif how == 2:
            inside[rng.randrange(len(inside))] = rng.choice(words)
            lines[place] = " ".join(inside)
        elif how == 3:
            inside.pop(rng.randrange(len(inside)))
            lines[place] = " ".join(inside)
        elif how == 4:
            lines[place] = lines[place].replace(str(rng.choice((16, 64, 1, 32))), str(rng.choice(COUNTS)))
        else:
            lines[place], lines[-1] = lines[-1], lines[place]
    return "\n".join(lines)


def make_ttir(rng: Random, folder: Path) -> Path:
    """Break the text of a kernel."""
    path = folder / "kernel.ttir"
    lines = rng.choice(sorted((ROOT / "triton" / "ttir").glob("*/*.ttir"))).read_text().splitlines()
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(rng, "\n".join(lines).encode()))
        return path
    words = (*TEXTS, *map(str, COUNTS), "%0", "%nothing", "tensor<0xf32>", "(" * 500)
    path.write_text(mutated_lines(rng, lines, words), "utf-8", "surrogatepass")
    return path


def use_ttir(path: Path) -> None:
    """Read and compile a kernel."""
    from bringup.triton import ttir
    from bringup.triton.executor import Kernel

    Kernel(ttir.parse(path.read_text("utf-8", "replace")))


SWEEP: Value = {
    "chips": ["t4", "edge8"],
    "hosts": ["xeon-8275cl"],
    "modes": ["eager", "graph"],
    "clusters": ["dgx-h100"],
    "link_scale": [1.0, 2.0],
    "dispatch_scale": [1.0, 0.5],
    "arguments": {"batch": [1, 8], "dtype": ["float32"], "compile": [False, True]},
    "ranges": {"memory": {"bandwidth_gb_s": [1000, 4000, 7]}, "compute": {"cores": {"values": [8, 64]}}},
    "programs": [{"script": "train.py", "arguments": ["--steps", "3"], "names": {"batch": "--batch-size"}}],
    "search": {"trials": 10, "usd_per_hour": "1 + compute.cores", "budgets": {"area": "compute.cores <= 80"}},
}


def make_sweep(rng: Random, folder: Path) -> Path:
    """Break a sweep file."""
    import tomli_w

    path = folder / "sweep.toml"
    text = tomli_w.dumps(SWEEP).encode()
    try:
        path.write_bytes(tomli_w.dumps(mutated(rng, SWEEP)).encode("utf-8", "surrogatepass"))
    except (AttributeError, RecursionError, TypeError, ValueError):  # what TOML cannot say
        path.write_bytes(mutated_bytes(rng, text))
    return path


def use_sweep(path: Path) -> None:
    """Plan the sweep, which runs no script, and read its formulas."""
    from bringup.sweep import file
    from bringup.sweep.expression import Expression

    command("sweep", "plan", str(path))
    finite(command("sweep", "plan", str(path), "--json"))
    search = file.load(path).file.search
    for text in (*search.budgets.values(), *filter(None, (search.usd_per_hour, search.tdp_w))) if search else ():
        Expression(text, "search").value({"compute.cores": 40.0})


# ---- models of other frameworks


@functools.cache
def stablehlo_texts() -> tuple[str, ...]:
    """Modules that JAX lowers: a training step with a loop and windows, and a function with a branch."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def step(weights: Value, image: Value, key: Value) -> Value:
        def loss(weights: Value) -> Value:
            options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            x = jax.nn.gelu(lax.conv_general_dilated(image, weights["conv"], (1, 1), "SAME", **options))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(2, -1)
            x = jnp.where(jax.random.bernoulli(jax.random.wrap_key_data(key), 0.9, x.shape), x, 0)
            x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights["layers"])
            return jax.nn.logsumexp(x).astype(jnp.bfloat16).sum()

        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights))

    def single(x: Value, i: Value) -> Value:
        y = lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)[i].at[i].add(2.0)
        return lax.sort(y), lax.top_k(x, 2), jnp.linalg.cholesky(x @ x.T), jnp.fft.rfft(x), jnp.pad(x, 1) + 1j

    weights = {"conv": jnp.ones((3, 3, 3, 4)), "layers": jnp.ones((3, 64, 64))}
    lowered = (
        jax.jit(step).lower(weights, jnp.ones((2, 8, 8, 3)), jnp.ones(2, jnp.uint32)),
        jax.jit(single).lower(jnp.ones((4, 4)), jnp.arange(3)),
    )
    return (*(item.as_text(debug_info=True) for item in lowered), *(item.as_text() for item in lowered))


def make_stablehlo(rng: Random, folder: Path) -> Path:
    """Break the text of a module."""
    path, text = folder / "step.mlir", rng.choice(stablehlo_texts())
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(rng, text.encode()))
        return path
    words = (
        *TEXTS,
        *(str(number) for number in COUNTS),
        *("%0", "%arg0", "%nothing", "tensor<0xf32>", "tensor<?xf32>", "tensor<*xf32>", "tensor<2xi4>", "!nothing"),
        *("tensor<4294967296x4294967296xf32>", "tensor<99999999xf32>", "dense<1>", 'dense<"0x01">', "dense<>"),
        *("stablehlo.add", "stablehlo.while", "call @main", "@nothing", "array<i64: 0, 0>", "dims = [9]", "(" * 500),
    )
    if rng.random() < 0.6:  # a size or another number, wherever it is, or once
        old, new = rng.choice(re.findall(r"\b\d+", text)), rng.choice((*COUNTS, *range(10)))
        places = [match.start() for match in re.finditer(rf"\b{old}(?!\d)", text)]
        for place in reversed(places if rng.random() < 0.6 else [rng.choice(places)]):
            text = f"{text[:place]}{new}{text[place + len(old) :]}"
    else:
        text = mutated_lines(rng, text.splitlines(), words)
    path.write_text(text, "utf-8", "surrogatepass")
    return path


def use_model(path: Path) -> None:
    """Predict a step, which computes nothing but shapes."""
    import torch

    import bringup
    from bringup import limits
    from bringup.device.dry import DryWarning

    warnings.simplefilter("ignore", DryWarning)
    for table, name in ((limits.ONNX, "turns"), (limits.STABLEHLO, "runs")):  # else an input may take a minute
        table[name] = limits.Limit(1000, "of the campaign")
    with contextlib.suppress(torch.OutOfMemoryError):  # of the chip
        bringup.predict(path, chip="t4")


@functools.cache
def onnx_models() -> tuple[Value, ...]:
    """Models as dictionaries: a perceptron with what decides shapes, and loops, branches and functions."""
    import numpy as np
    from google.protobuf import json_format
    from onnx import TensorProto, helper, numpy_helper

    def node(op: str, inputs: str, outputs: str, **options: Value) -> Value:
        return helper.make_node(op, inputs.split(), outputs.split(), op.lower(), **options)

    def value(name: str, sizes: Value = None, kind: int = TensorProto.FLOAT) -> Value:
        return helper.make_tensor_value_info(name, kind, sizes)

    def weight(name: str, array: Value) -> Value:
        return numpy_helper.from_array(np.asarray(array), name)

    def model(nodes: Value, weights: Value, **options: Value) -> Value:
        graph = helper.make_graph(nodes, "g", [value("x", [2, 3, 8, 8])], [value("y")], weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return json_format.MessageToDict(helper.make_model(graph, opset_imports=opsets, **options))

    network = [
        node("Conv", "x kernel", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("MaxPool", "a", "b", kernel_shape=[2, 2]),
        node("Shape", "b", "shape"),
        node("Gather", "shape first", "batch", axis=0),
        node("Concat", "batch rest", "sizes", axis=0),
        node("Reshape", "b sizes", "c"),
        node("Slice", "c start end", "d"),
        node("Pad", "d pads", "e"),
        node("Gemm", "e matrix", "f", transB=1),
        node("ConstantOfShape", "many", "mask"),
        node("Resize", "x empty empty sizes4", "large", mode="linear"),
        node("ReduceMean", "large", "mean", keepdims=0),
        node("Softmax", "f", "g"),
        node("Add", "g mean", "y"),
    ]
    constants = {
        **{"kernel": np.ones((4, 3, 3, 3), np.float32), "matrix": np.ones((5, 10), np.float32)},
        **{"first": [0], "rest": [-1], "start": [0, 0], "end": [9, 8], "pads": [0, 1, 0, 1], "many": [7, 7]},
        **{"sizes4": [2, 3, 16, 16], "empty": np.ones(0, np.float32)},
    }
    body = helper.make_graph(
        [node("Add", "state state", "next"), node("Identity", "go", "again")],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state")],
        [value("again", None, TensorProto.BOOL), value("next"), value("next")],
    )
    one = helper.make_graph([node("Own", "looped", "inner", domain="own")], "one", [], [value("inner")])
    other = helper.make_graph([node("Neg", "looped", "inner2")], "other", [], [value("inner2")])
    control = [
        node("Loop", "count true x", "looped rows", body=body),
        node("If", "true", "chosen", then_branch=one, else_branch=other),
        node("Add", "chosen looped", "y"),
    ]
    own = helper.make_function("own", "Own", ["p"], ["q"], [node("Relu", "p", "q")], [helper.make_opsetid("", 17)])
    return (
        model(network, [weight(name, array) for name, array in constants.items()]),
        model(control, [weight("count", 3), weight("true", True)], functions=[own]),
    )


def make_onnx(rng: Random, folder: Path) -> Path:
    """Break the messages or the bytes of a model."""
    import onnx
    from google.protobuf import json_format

    path, described = folder / "model.onnx", rng.choice(onnx_models())
    whole = json_format.ParseDict(described, onnx.ModelProto()).SerializeToString()
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(rng, whole))
        return path
    try:
        broken = json_format.ParseDict(mutated(rng, described), onnx.ModelProto(), ignore_unknown_fields=True)
        path.write_bytes(broken.SerializeToString())
    except Exception:  # what a message cannot say
        path.write_bytes(mutated_bytes(rng, whole))
    return path


FORMATS = {
    "chip file": Format(_make_described("chip"), use_chip),
    "host file": Format(_make_described("host"), use_host),
    "trace": Format(make_trace, use_trace),
    "report": Format(make_report, use_report),
    "scorecard": Format(make_card, use_card),
    "measurement set": Format(make_set, use_set),
    "sweep": Format(make_sweep, use_sweep),
    "TTIR": Format(make_ttir, use_ttir),
    **({"StableHLO": Format(make_stablehlo, use_model)} if importlib.util.find_spec("jax") else {}),
    **({"ONNX": Format(make_onnx, use_model)} if importlib.util.find_spec("onnx") else {}),
}


def outcome_of(name: str, rng: Random) -> tuple[str, str]:
    """Make one input and use it; return the outcome, and what went wrong."""
    with tempfile.TemporaryDirectory(prefix="bringup-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = FORMATS[name].make(rng, Path(folder))
        try:
            FORMATS[name].use(path)
        except BringupError as error:
            whole = bool(str(error)) and "\n" not in str(error)
            return ("one sentence", "") if whole else ("traceback", f"not one sentence: {error}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:100]}"
            return "traceback", f"{what} ({Path(place.filename).name}:{place.lineno})"
    return "accepted", ""


# ---- a campaign


def rng_of(seed: int, name: str, number: int) -> Random:
    """Return the random numbers of an input."""
    return random.Random(f"{seed} {name} {number}")


def outcome_of_number(name: str, seed: int, number: int) -> tuple[str, str]:
    """Read one input of a campaign."""
    return outcome_of(name, rng_of(seed, name, number))


def campaign(name: str, seed: int, count: int) -> Iterator[tuple[int, str, str]]:
    """Read inputs in processes of their own; yield number, outcome and reason of each."""
    return in_processes(functools.partial(outcome_of_number, name, seed), list(range(count)), SECONDS)


def main() -> int:
    """Run a campaign, or one input."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=20_000, help="inputs over all formats")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--format", choices=FORMATS, default=None)
    options.add_argument("--only", type=int, default=None, help="one input, here, with its traceback")
    asked = options.parse_args()
    names = [asked.format] if asked.format else list(FORMATS)
    if asked.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            FORMATS[names[0]].use(FORMATS[names[0]].make(rng_of(asked.seed, names[0], asked.only), Path(folder)))
        return 0
    print(f"{'format':16}{'inputs':>8}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES) + f"{'seconds':>9}")
    faults: list[str] = []
    for place, name in enumerate(names):
        counts: collections.Counter[str] = collections.Counter()
        began = time.monotonic()
        share = asked.count // len(names) + (place < asked.count % len(names))
        for number, outcome, reason in campaign(name, asked.seed, share):
            counts[outcome] += 1
            if outcome in FAULTS:
                faults.append(f"{name} {number}: {outcome}, {reason}")
        row = "".join(f"{counts[outcome]:>14,}" for outcome in OUTCOMES)
        print(f"{name:16}{counts.total():>8,}{row}{time.monotonic() - began:>9.0f}", flush=True)
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
