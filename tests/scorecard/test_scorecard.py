"""The scorecard: every item passes for a reason, and fails when something is broken on purpose."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bringup
from bringup.analyse import summarize
from bringup.cli.check import _select
from bringup.errors import BringupError
from bringup.placement.break_even import BreakEven, break_even
from bringup.recording import sanitize
from bringup.recording.waits import Waits
from bringup.report import html, perfetto, pftrace
from bringup.scorecard import (
    card,
    framework,
    kernels,
    library,
    matrix,
    memory,
    registry,
    runtime,
    strided,
    system,
    tools,
)
from bringup.scorecard import page as scorecard_page
from bringup.scorecard.registry import Failed, NotApplicable, Partial, load, run_item
from tests.conftest import ROOT, slow, without_bringup

CHIP = torch.device("chip", 0)
ITEMS = load()
FAILS_TODAY = {"G3"} | (set() if importlib.util.find_spec("triton") else {"D2"})
SLOW = {"A3", "A4", "A5", "A6", "A11", "J4"}
APART = {"D10"}  # changes its process: tests/triton/test_libraries.py

Patch = pytest.MonkeyPatch


class Wrong(TorchDispatchMode):
    """A device whose operators of some names are off by a tenth."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, (tuple, list)) else [out]:
            chosen = any(word in func.name() for word in self.words) and isinstance(result, torch.Tensor)
            if chosen and result.device.type == "chip" and result.is_floating_point():
                result.detach().add_(0.1)
        return out


class Careless(TorchDispatchMode):
    """A device that is wrong in one way of using operators, a key of `CARELESS`."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.change = CARELESS[way]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        name = func.name().removeprefix("aten::")
        computes = name.split(".")[0].rstrip("_") in ("add", "mul", "mm", "sin", "t", "linear", "addmm")
        if not computes or not any(part.device.type == "chip" for part in tensors):
            return func(*args, **kwargs)
        return self.change(func, name, args, kwargs)


def with_tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def call(func: Any, name: str, args: Any, kwargs: Any) -> Any:
        changed = [change(part) if isinstance(part, torch.Tensor) else part for part in args]
        return func(*(args if name.split(".")[0].endswith("_") or "out" in kwargs else changed), **kwargs)

    return call


def contiguous_strides(tensor: torch.Tensor) -> list[int]:
    return list(torch.empty(tensor.shape, device="meta").stride())


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_contiguous() or 0 in tensor.stride():
        return tensor
    return tensor.as_strided(tensor.shape, contiguous_strides(tensor), tensor.storage_offset())


def without_repetition(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1 if tensor.dim() and tensor.stride(0) == 0 and tensor.shape[0] > 1 else tensor


def without_offset(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_strided(tensor.shape, tensor.stride(), 0)


def leaves_itself(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if not name.split(".")[0].endswith("_"):
        return func(*args, **kwargs)
    func(args[0].clone(), *args[1:], **kwargs)
    return args[0]


def leaves_out(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if "out" in kwargs:
        kwargs = {**kwargs, "out": kwargs["out"].clone()}
    return func(*args, **kwargs)


CARELESS: dict[str, Callable[..., Any]] = {
    "transposed": with_tensors(in_memory_order),
    "expanded": with_tensors(without_repetition),
    "offset": with_tensors(without_offset),
    "in place": leaves_itself,
    "out=": leaves_out,
}


def few(patch: Patch) -> None:
    """Take few operators, for speed."""
    original = framework.opinfos
    names = {"add", "mul", "mm", "sin", "nn.functional.linear"}
    for module in (framework, matrix, strided):
        patch.setattr(module, "opinfos", lambda dtype: (op for op in original(dtype) if op.name in names))


def blocking(patch: Patch) -> None:
    original = torch.Tensor.__matmul__

    def product(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        found = original(self, other)
        torch.accelerator.synchronize()
        return found

    patch.setattr(torch.Tensor, "__matmul__", product)


def one_stream(patch: Patch) -> None:
    class Same:
        def __init__(self, _device: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    patch.setattr(torch, "Stream", Same)


def early_events(patch: Patch) -> None:
    class Early(torch.Event):
        def query(self) -> bool:
            return True

    patch.setattr(torch, "Event", Early)


def said(patch: Patch, module: Any, stdout: str, code: int = 0) -> None:
    """Let the item's own processes say something else."""
    done = types.SimpleNamespace(stdout=stdout, stderr="", returncode=code)
    patch.setattr(module.subprocess, "run", lambda *_args, **_kwargs: done)


def price_without(patch: Patch, **changed: Any) -> None:
    original = bringup.price

    def price(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        for name, value in changed.items():
            setattr(found, name, value)
        return found

    patch.setattr(bringup, "price", price)


def ignored(*_args: Any, **_kwargs: Any) -> None: ...


def no_gradient(patch: Patch) -> None:
    original = torch.library.custom_op

    def custom_op(*args: Any, **kwargs: Any) -> Any:
        make = original(*args, **kwargs)

        def define(function: Any) -> Any:
            found = make(function)
            found.register_autograd = lambda *_a, **_k: None
            return found

        return define

    patch.setattr(torch.library, "custom_op", custom_op)


def numb_optimizers(patch: Patch) -> None:
    for name in ("SGD", "Adam", "AdamW"):
        patch.setattr(getattr(torch.optim, name), "step", lambda self, closure=None: None)
    original = framework._optimised

    def optimised(kind: Any, device: torch.device) -> Any:
        found = original(kind, device)
        return [tensor + 1 for tensor in found] if device.type == "chip" else found

    patch.setattr(framework, "_optimised", optimised)


def few_of_flaggems(patch: Patch) -> Any:
    """FlagGems stays out of this process: torch's own operators stand in for two of its."""
    original = library.opinfos
    patch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    patch.setattr(library, "opinfos", lambda dtype: (op for op in original(dtype) if op.name in ("sin", "cos")))
    patch.setattr(library, "enable", lambda device: {"sin", "cos", "sin_"})
    return Wrong("sin")


def never_faster(row: BreakEven) -> BreakEven:
    return replace(row, chip=tuple(2 * seconds for seconds in row.host))


FAULTS: dict[str, Callable[[Patch], Any]] = {
    "A1": lambda p: p.setattr(torch.accelerator, "current_accelerator", lambda *_a, **_k: None),
    "A2": lambda p: Wrong("copy", "to"),
    "A3": lambda p: (few(p), Wrong("add", "mm"))[1],
    "A4": lambda p: (few(p), Wrong("add", "mul"))[1],
    "A5": lambda p: (few(p), Wrong("mul", "mm"))[1],
    "A6": lambda p: Wrong("mm", "convolution", "mul"),
    "A7": numb_optimizers,
    "A8": lambda p: Wrong("addmm"),
    "A9": lambda p: p.setattr(torch, "compile", lambda model, **_k: torch.nn.Sequential(model, torch.nn.Softmax(1))),
    "A10": lambda p: p.setattr(torch, "manual_seed", ignored),
    "A11": lambda p: (few(p), Wrong("add", "mm"))[1],
    "B1": blocking,
    "B2": lambda p: Wrong("mul_"),
    "B3": one_stream,
    "B4": early_events,
    "B5": one_stream,
    "B6": lambda p: p.setattr(Waits, "implicit", property(lambda self: self.between(0, 0))),
    "B7": lambda p: p.setattr(runtime, "failing_launch", lambda device: torch.ones(2, device=device)),
    "B8": lambda p: Wrong("mul"),
    "C1": lambda p: said(p, memory, "read 7.0\nunnoticed\n"),
    "C2": lambda p: p.setattr(torch.accelerator.memory, "get_memory_info", lambda *_a: (1 << 20, 1 << 20)),
    "C3": lambda p: p.setattr(torch.accelerator.memory, "memory_allocated", lambda *_a: 0),
    "C4": lambda p: p.setattr(torch.accelerator, "empty_cache", ignored),
    "C5": lambda p: p.setattr(torch.Tensor, "record_stream", ignored),
    "C6": lambda p: p.setitem(sanitize.CHECKS, "init", lambda rows: iter(())),
    "D1": no_gradient,
    "D2": lambda p: p.setattr(kernels.importlib.util, "find_spec", lambda name: None),
    "D4": lambda p: said(p, kernels, "error: unsupported\n"),
    "D5": lambda p: Wrong("mul"),
    "D8": lambda p: p.setattr(torch, "manual_seed", ignored),
    "D9": lambda p: Wrong("mm", "softmax"),
    "D10": few_of_flaggems,
    "E1": lambda p: p.setattr(summarize, "by_group", lambda *_a: []),
    "E2": lambda p: p.setattr(perfetto, "trace", lambda timeline: pftrace.Writer()),
    "E3": lambda p: price_without(p, fallbacks=[]),
    "E4": lambda p: price_without(p, bottlenecks=[]),
    "E5": lambda p: p.setattr(torch.profiler, "profile", lambda **_k: nullcontext(types.SimpleNamespace(events=list))),
    "E6": lambda p: p.setattr(html, "page", lambda *_a: "<html>"),
    "E7": lambda p: p.setattr(bringup.Trace, "load", classmethod(lambda cls, file: 1 / 0)),
    "F1": lambda p: price_without(p, step_seconds=1.0),
    "F2": lambda p: p.setattr(system, "break_even", lambda chip, host: [never_faster(break_even(chip, host)[0])]),
    "F3": lambda p: p.setattr(bringup, "placed", lambda plan: nullcontext()),
    "F4": lambda p: price_without(p, what_if=[]),
    "F5": lambda p: price_without(p, step_seconds=0.0),
    "F7": lambda p: price_without(p, energy_joules=None),
    "G1": lambda p: (few(p), Wrong("add", "mul", "mm", "sin", "linear"), p.setattr(matrix, "close", lambda *_a: False))[
        1
    ],
    "G2": lambda p: said(p, system, "2.0"),
    "G4": lambda p: p.setattr(bringup.core, "torch_here", lambda: None),
    "H2": lambda p: Wrong("add"),
    "H4": lambda p: (p.setattr(os, "getuid", lambda: 0), said(p, system, "", 1))[0],
    "I1": lambda p: p.setattr(torch.Tensor, "to", lambda self, *_a: self + 1),
    "I2": lambda p: p.setattr(torch.nn.parallel, "DistributedDataParallel", lambda module: 1 / 0),
    "I3": lambda p: p.setattr(torch.distributed, "init_process_group", lambda *_a, **_k: 1 / 0),
    "I4": lambda p: p.setattr(torch.distributed, "all_reduce", ignored),
    "J3": lambda p: p.setattr(
        system.subprocess, "Popen", lambda *_a, **_k: types.SimpleNamespace(communicate=lambda: ("9", ""))
    ),
    "J4": lambda p: p.setattr(
        framework, "train", lambda device, **_k: LEAKED.append(torch.ones(1 << 20, device=device))
    ),
    "J5": lambda p: p.setattr(bringup.ChipFileError, "__doc__", None),
    "J6": lambda p: p.setattr(system.importlib.metadata, "metadata", lambda package: {}),
}
LEAKED: list[torch.Tensor] = []
NO_FAULT = {"G3": "fails today: the chip has no utilisation"}


@pytest.mark.parametrize("name", [name for name in ITEMS if name not in SLOW | APART])
def test_an_item_says_what_is_known_of_the_chip(name: str) -> None:
    found = run_item(ITEMS[name], CHIP)
    if name in FAILS_TODAY:
        assert found["verdict"] == "fail" and found["hint"], found
    elif name == "A9":
        assert found["verdict"] in ("partial", "pass"), found
    else:
        assert found["verdict"] in ("pass", "na"), found
    assert found["evidence"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_long_item_passes(name: str) -> None:
    found = run_item(ITEMS[name], CHIP)
    known = "not: sparse.sampled_addmm" in found["evidence"]  # see conformance/expected_failures.toml
    assert found["verdict"] == "pass" or (name == "A5" and known and found["score"] > 0.99), found


@pytest.mark.parametrize("name", [*(name for name in ITEMS if name not in {*NO_FAULT, "J4"}), *slow("J4")])
def test_a_planted_fault_fails_its_item(name: str, monkeypatch: Patch) -> None:
    mode = FAULTS[name](monkeypatch)
    with mode if isinstance(mode, TorchDispatchMode) else nullcontext():
        found = run_item(ITEMS[name], CHIP)
    LEAKED.clear()
    torch.compiler.reset()
    assert found["verdict"] == "fail" or (found["verdict"] == "partial" and found["score"] < 0.9), found
    assert found["hint"] and found["evidence"]


@pytest.mark.parametrize("way", CARELESS)
def test_device_that_is_careless_in_one_way_fails_in_this_way(way: str, monkeypatch: Patch) -> None:
    few(monkeypatch)
    assert run_item(ITEMS["A3"], CHIP)["verdict"] == "pass"
    with Careless(way):
        line = run_item(ITEMS["A11"], CHIP)
    assert line["verdict"] == "partial" and f"{way}: " in line["evidence"].partition("; not ")[2], line


def test_careful_device_passes_in_all_ways(monkeypatch: Patch) -> None:
    few(monkeypatch)
    line = run_item(ITEMS["A11"], CHIP)
    tried = int(line["evidence"].split()[0])
    assert (
        tried >= len(strided.LAYOUTS) * 5 + 3 + 4
    )  # add, mul and sin have in-place forms, and all but linear take out=
    assert (line["verdict"], line["evidence"]) == ("pass", f"{tried} of {tried} uses of operators"), line


def test_the_cpu_gets_the_honest_result() -> None:
    cpu = torch.device("cpu")
    skipped = SLOW - {"A6"} | {"A9", "H4"}
    verdicts = {name: run_item(ITEMS[name], cpu)["verdict"] for name in ITEMS if name not in skipped}
    assert {name for name, verdict in verdicts.items() if verdict == "pass"} >= {
        *("A1", "A2", "A6", "A7", "A8", "A10", "B2", "B7", "B8", "D1", "D5", "D8", "E5", "I2", "J3", "J6")
    }
    for name in ("B1", "B3", "B4", "B5", "C1", "C2", "C3", "C4", "C5", "E1", "F1", "G2", "I1"):
        assert verdicts[name] == "na", f"{name}: the CPU has no streams, no capacity, and none of bringup's tools"


def test_there_are_enough_items_and_the_documentation_lists_them() -> None:
    assert len(ITEMS) >= 59
    page = (ROOT / "docs" / "scorecard.md").read_text(encoding="utf-8")
    for name, entry in ITEMS.items():
        assert f"| {name} | {entry.level} | {entry.title} | {entry.about} |" in page, name


# ---- the machinery


def test_verdicts_follow_from_what_the_function_does() -> None:
    def answer(function: Callable[[], str]) -> dict[str, Any]:
        return run_item(registry.Item("X1", "D", "title", "do this", lambda device: function(), 1), CHIP)

    def raising(error: Exception) -> Callable[[], str]:
        def function() -> str:
            raise error

        return function

    assert answer(lambda: "3 of 3")["verdict"] == "pass"
    partial = answer(raising(Partial(0.25, "1 of 4")))
    assert (partial["verdict"], partial["score"], partial["hint"]) == ("partial", 0.25, "do this")
    assert answer(raising(NotApplicable("no streams")))["verdict"] == "na"
    assert answer(raising(Failed("wrong")))["evidence"] == "wrong"
    assert answer(raising(ValueError("what\nmore")))["evidence"] == "ValueError: what"


def test_an_item_needs_its_own_id_a_level_and_documentation() -> None:
    with pytest.raises(BringupError, match="item A1 exists already"):
        registry.item("A1", "D", "x", hint="y")(lambda device: "")
    with pytest.raises(BringupError, match="level must be one of D, T, P, got 'Q'"):
        registry.item("X9", "Q", "x", hint="y")(lambda device: "")
    with pytest.raises(BringupError, match="needs a docstring"):
        registry.item("X9", "D", "x", hint="y")(lambda device: "")


VENDOR = '''
import os, signal, time
from bringup.scorecard import item, require

@item("X1", "D", "crashes", hint="mend it")
def crash(device):
    """Dies."""
    os.kill(os.getpid(), signal.SIGSEGV)

@item("X2", "D", "hangs", hint="mend it", seconds=6)
def hang(device):
    """Never ends."""
    time.sleep(600)

@item("X3", "T", "works", hint="nothing")
def works(device):
    """Works."""
    print("noise")
    return f"on {device}"
'''


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    (tmp_path / "vendor.py").write_text(VENDOR, encoding="utf-8")
    environment = without_bringup()

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "bringup", "check", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=environment,
        )

    return run


def test_crashes_and_hangs_are_verdicts_and_vendors_add_items(check: Any, tmp_path: Path) -> None:
    done = check("--items", "vendor.py", "--only", "X1,X2,X3,A1", "--chip", "t4", "--json", "card.json")
    assert done.returncode == 0, done.stderr
    lines = {line["id"]: line for line in json.loads((tmp_path / "card.json").read_text())["items"]}
    assert lines["X1"]["verdict"] == "fail" and "died of SIGSEGV" in lines["X1"]["evidence"]
    assert lines["X2"]["verdict"] == "fail" and "did not end within 6 s" in lines["X2"]["evidence"]
    assert lines["X3"]["verdict"] == "pass" and lines["X3"]["evidence"] == "on chip"
    assert "level D: 33% (1 pass, 2 fail)" in done.stdout and "mend it" in done.stdout
    page = (tmp_path / "bringup-check" / "scorecard.html").read_text(encoding="utf-8")
    assert "crashes" in page and "<svg" in page and page.rstrip().endswith("</html>")
    assert "25 %" not in (tmp_path / "bringup-check" / "scorecard.svg").read_text(encoding="utf-8")
    badge = (tmp_path / "bringup-check" / "scorecard.svg").read_text(encoding="utf-8")
    assert f"50 %, 4 of {len(load(())) + 3} items" in badge and f"4 of {len(load(())) + 3} items were checked" in page


def test_two_cards_are_compared(check: Any, tmp_path: Path) -> None:
    assert check("--only", "A1", "--device", "cpu").returncode == 0
    old = json.loads((tmp_path / "bringup-check" / "scorecard.json").read_text())
    old["items"][0].update(verdict="fail", score=0.0)
    (tmp_path / "old.json").write_text(json.dumps(old))
    done = check("--only", "A1", "--device", "cpu", "--against", "old.json")
    assert done.returncode == 0 and "better A1 import torch loads the device: fail 0% -> pass 100%" in done.stdout
    worse = card.changes(json.loads((tmp_path / "bringup-check" / "scorecard.json").read_text()), old)
    assert [word for word, _, _ in worse] == ["worse"]


def test_mistakes_are_one_sentence(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 99}')
    for arguments, words in (
        (("--only", ""), "--only '' names no item"),
        (("--only", "Z9"), "there is no item 'Z9'"),
        (("--only", "E7,J6", "--level", "T"), "--only E7,J6: no such item has level T or a lower one"),
        (("--device", "cpu", "--chip", "t4"), "--chip applies to --device chip, not to cpu"),
        (("--device", "cuda"), "--device cuda: this torch cannot use it"),
        (("--chip", "t5"), "no chip is named 't5'"),
        (("--against", "other.json", "--only", "A1"), "other.json: is not a scorecard of version 1"),
        (("--items", "none.py", "--list"), "none.py: there is no such file of items"),
    ):
        done = refused("check", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr, done.stderr


LINE = {"id": "A1", "level": "D", "title": "t", "verdict": "pass", "score": 1, "evidence": "", "hint": "", "seconds": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "it is not JSON"),
        ("no", "it is not JSON"),
        (json.dumps({"schema": 1, "items": [{**LINE, "score": "1"}]}), "items.0.score: Input should be a valid number"),
        (json.dumps({"schema": 1, "items": [{**LINE, "score": 1.5}]}), "items.0.score: Input should be less than"),
        (
            json.dumps({"schema": 1, "items": [{**LINE, "score": float("nan")}]}),
            "items.0.score: Input should be a finite",
        ),
        (json.dumps({"schema": 1, "items": [{**LINE, "id": {}}]}), "items.0.id: Input should be a valid string"),
        (json.dumps({"schema": 1, "items": [{**LINE, "seconds": 10**400}]}), "items.0.seconds"),
        (json.dumps({"schema": 1, "items": [{**LINE, "verdict": "good"}]}), "items.0.verdict: Input should be 'pass'"),
        (json.dumps({"schema": 1, "items": {}}), "items: Input should be a valid list"),
        (json.dumps([]), "is not a scorecard of version 1"),
    ],
)
def test_damaged_card_is_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(bringup.BringupError) as caught:
        card.load(str(tmp_path / "card.json"))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_card_of_others_is_compared(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"schema": 1, "items": [{**LINE, "extra": [1]}]}))
    old = card.load(str(tmp_path / "card.json"))
    assert [word for word, _, _ in card.changes(old, {"items": [{**LINE, "score": 0.5}]})] == ["worse"]


def test_the_matrix_says_native_fallback_or_fails() -> None:
    names = [op.name for op in framework.opinfos(torch.float32)][::60]
    found = matrix.support(CHIP, (torch.float32,), stride=60)
    assert {name.split(".")[0] for name in found} <= {name.split(".")[0] for name in names}
    assert all(row == {"float32": "native"} for row in found.values()), found


def test_the_card_escapes_what_items_say() -> None:
    line = registry.line(
        registry.Item("X1", "D", "<b>", "", lambda device: "", 1), "fail", 0.0, "<script>alert(1)</script>", 0.1
    )
    page = scorecard_page.page(
        {"schema": 1, "device": "<i>", "chip": None, "items": [line], "listed": 1, "ops": {}}, {}, None
    )
    assert (
        "<script>alert(1)" not in page
        and "&lt;script&gt;alert(1)" in page
        and "<i>" not in page.split("<body")[1][:300]
    )


def test_level_limits_the_items_that_are_named() -> None:
    items = load(())
    assert [item.id for item in _select(items, "J6,A1,A4", "D")] == ["A1"]
    assert [item.id for item in _select(items, "J6,A1,A4", "P")] == ["J6", "A1", "A4"]
    assert {item.level for item in _select(items, None, "T")} == {"D", "T"}


def test_badge_of_all_items_has_the_share_alone() -> None:
    line = registry.line(registry.Item("X1", "D", "a", "", lambda device: "", 1), "pass", 1.0, "", 0.1)
    whole = {"device": "chip", "chip": "t4", "items": [line], "listed": 1}
    assert ">100 %</text>" in scorecard_page.badge(whole)
    assert ">100 %, 1 of 57 items</text>" in scorecard_page.badge({**whole, "listed": 57})


def test_shares_leave_out_what_does_not_apply() -> None:
    lines = [
        {"level": "D", "verdict": verdict, "score": score}
        for verdict, score in (("pass", 1), ("partial", 0.5), ("na", 0))
    ]
    assert card.share({"items": lines}) == 0.75 and card.share({"items": lines}, "T") is None
    assert card.totals({"items": lines})["D"] == {"pass": 1, "partial": 1, "fail": 0, "na": 1}


def test_tools_need_the_chip() -> None:
    with pytest.raises(NotApplicable):
        tools.recording(torch.device("cpu"))


def test_a_file_of_items_keeps_the_kernels_that_it_registers(tmp_path: Path) -> None:
    file = tmp_path / "kernels_of_items.py"
    file.write_text("class Kernels:\n    pass\nkernels = Kernels()\n", encoding="utf-8")
    load((str(file),))
    assert sys.modules.pop("bringup_items_kernels_of_items").kernels is not None
