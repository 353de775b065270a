"""Programs of TensorFlow and Keras on the chip, beside TensorFlow's own CPU.

TensorFlow is 700 MB and no part of the test environment. To run these tests, ``pip install "bringup[tensorflow]"``, and
``pytest tests/frontends/test_tensorflow.py -m "slow or not slow"``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bringup.errors import BringupError
from bringup.frontends.tensorflow import functions, hook
from bringup.imports import after_import
from tests.conftest import NO_TENSORFLOW, ROOT
from tests.frontends.tensorflow_programs import PROGRAMS, STEPS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not HAS_TENSORFLOW, reason=NO_TENSORFLOW)
FAST = ("custom_loop", "left_on_the_host")
SLOW = tuple(name for name in PROGRAMS if name not in FAST)


@lru_cache
def trained(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Train programs on TensorFlow's CPU and on the chip, all in one process."""
    command = [sys.executable, "-m", "tests.frontends.tensorflow_programs", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    results = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return {result["name"]: result for result in results}


@needs_tensorflow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_program_equals_tensorflow(name: str) -> None:
    result = trained(FAST if name in FAST else SLOW)[name]
    wanted, losses = result["wanted"], result["losses"]
    tolerance = 1e-5
    if name in ("mixed_precision", "scaled_losses"):  # of 16 bits; the accuracy after the losses counts near ties
        wanted, losses, tolerance = wanted[:STEPS], losses[:STEPS], 1e-2
    assert len(wanted) >= {"saved_model": 6, "several_steps_per_execution": 7}.get(name, STEPS)
    np.testing.assert_allclose(losses, wanted, rtol=tolerance, atol=1e-6)
    assert result["launches"] and result["framework"] == "tensorflow"
    assert all(line.startswith("tf.") for line in result["lines"]) and result["lines"]
    on_host = [name for name, _ in result["on_host"]]
    assert on_host == (["augment", "chosen"] if name == "left_on_the_host" else [])


@needs_tensorflow
def test_functions_on_the_host_say_why() -> None:
    why = dict(trained(FAST)["left_on_the_host"]["on_host"])
    assert why["augment"].startswith("XLA cannot compile PyFunc (")
    assert "tensorflow_programs.py:" in why["augment"]
    assert "tf.chosen:Where:" in why["chosen"] and "is dynamic" in why["chosen"] and "\n" not in why["chosen"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"__inference_train_step_123", "train_step"),
        (b"__inference_step_2_123", "step_2"),
        (b"__forward_f_12", "f"),
        (b"__inference___backward_f_12_345", "f backward"),
        (b"other", "other"),
    ],
)
def test_functions_have_the_names_of_the_program(name: bytes, shown: str) -> None:
    assert functions.readable(name) == shown


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that no other test imports, and a folder for it."""
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    sys.modules.pop("module_of_test", None)


def test_function_is_called_after_an_import(fake: Path) -> None:
    (fake / "module_of_test.py").write_text("loaded = True\n", encoding="utf-8")
    events: list[Any] = []
    after_import("module_of_test", lambda module: events.append(module.loaded), before=lambda: events.append("before"))
    module = importlib.import_module("module_of_test")
    assert events == ["before", True]
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__


def test_program_may_look_for_a_module_before_it_imports_it(fake: Path) -> None:
    path = fake / "module_of_test.py"
    path.write_text("raise ImportError('not now')\n", encoding="utf-8")
    events: list[Any] = []
    after_import("module_of_test", lambda module: events.append("after"), before=lambda: events.append("before"))
    for _ in range(2):
        assert importlib.util.find_spec("module_of_test") is not None
    assert events == []
    with pytest.raises(ImportError, match="not now"):
        importlib.import_module("module_of_test")
    path.write_text("loaded = True  # now\n", encoding="utf-8")
    importlib.invalidate_caches()
    importlib.import_module("module_of_test")
    assert events == ["before", "before", "after"]


def test_function_is_called_at_once_for_an_imported_module() -> None:
    events: list[ModuleType] = []
    after_import("json", events.append)
    assert events == [json]


def test_missing_module_stays_missing(fake: Path) -> None:
    after_import("module_of_test", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="module_of_test"):
        importlib.import_module("module_of_test")


def old_release(folder: Path) -> None:
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text('__version__ = "1.15.0"\n', encoding="utf-8")


def test_other_release_stays_on_the_host(bringup_run: Run, tmp_path: Path) -> None:
    old_release(tmp_path)
    (tmp_path / "a.py").write_text(
        "import tensorflow\nimport torch\nprint(torch.ones(2, device='chip').sum())\n", encoding="utf-8"
    )
    done = bringup_run("a.py")
    assert done.returncode == 0 and "tensor(2.)" in done.stdout.replace(", device='chip:0'", "")
    assert f"bringup: TensorFlow's functions stay on the host: TensorFlow 1.15.0 is not {hook.TESTED}" in done.stderr


def test_chip_of_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_DRIVER", "opencl")
    with pytest.raises(BringupError, match=r"^TensorFlow needs the virtual chip, .* unset BRINGUP_DRIVER$"):
        hook.check(f"{hook.TESTED}.0")


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_framework_that_is_not_installed_is_refused(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('ran')\n", encoding="utf-8")
    done = bringup_run("--framework", "tensorflow", "a.py")
    assert done.returncode == 2 and "ran" not in done.stdout
    assert done.stderr == ('bringup: --framework tensorflow: it is not installed: pip install "bringup[tensorflow]"\n')


@needs_tensorflow
@pytest.mark.slow
def test_script_runs_and_its_steps_are_executions(bringup_run: Run, tmp_path: Path) -> None:
    done = bringup_run("--chip", "t4", "--out", "out", str(ROOT / "examples" / "gan_tensorflow.py"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["framework"] == "tensorflow" and summary["steps_by"] == "execution"
    assert summary["fits"] and not summary["fallbacks"]


@needs_tensorflow
@pytest.mark.slow
def test_variables_have_their_values_after_a_failed_call(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        """
import tensorflow as tf
v, w = tf.Variable(tf.fill([4], 3.0), name="scale"), tf.Variable(tf.ones([2]), shape=tf.TensorShape(None))
@tf.function
def f(x):
    v.assign_add(tf.ones([4]) * tf.reduce_sum(tf.exp(x[:, None] * x[None, :] * 0.0)))
@tf.function
def initialize_variables(x):
    return x + tf.reduce_sum(w)
f(tf.ones([2]))
try:
    f(tf.ones([70_000]))
except Exception as error:
    print(type(error).__name__)
print(v.numpy().tolist())
f(tf.ones([2]))
print(v.numpy().tolist(), float(initialize_variables(1.0)))
w.assign(tf.ones([3, 2]))
print(float(initialize_variables(1.0)))
from bringup.frontends.tensorflow import memory
share, calls = memory.share, []
def fails_once(tensor, kind):
    calls.append(kind)
    if len(calls) == 1:
        raise RuntimeError("no memory to share")
    return share(tensor, kind)
memory.share = fails_once
try:
    f(tf.ones([2]))
except RuntimeError as error:
    print(error, v.numpy().tolist())
memory.share = lambda tensor, kind: fails_once(calls.clear(), kind)
try:
    f(tf.ones([2]))
except RuntimeError as error:
    print(error.__notes__)
memory.share = share
@tf.function
def initialize_variables():
    tf.print("on the host")
initialize_variables()
""",
        encoding="utf-8",
    )
    done = bringup_run("--chip", "t4", "--out", "out", "a.py")
    assert done.returncode == 0, done.stderr
    lines = ["OutOfMemoryError", "[7.0, 7.0, 7.0, 7.0]", "[11.0, 11.0, 11.0, 11.0] 3.0", "7.0"]
    lines += ["no memory to share [15.0, 15.0, 15.0, 15.0]"]
    lines += ["['bringup: 1 variable empty now, whose old value the call had freed before it failed: scale']"]
    assert done.stdout.splitlines()[: len(lines)] == lines, done.stderr
    assert "bringup: initialize_variables stays on the host: XLA cannot compile PrintV2" in done.stderr


@needs_tensorflow
@pytest.mark.slow
def test_function_on_the_host_is_refused_if_strict(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import tensorflow as tf\n@tf.function\ndef f(x):\n    tf.print(x)\n    return x + 1\nf(tf.ones([2]))\n",
        encoding="utf-8",
    )
    done = bringup_run("--strict", "a.py")
    assert done.returncode == 1
    assert "f cannot run on the chip: XLA cannot compile" in done.stderr and "leave out --strict" in done.stderr


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_keras_has_equal_losses_on_three_back_ends(bringup_run: Run, tmp_path: Path) -> None:
    losses = {}
    for framework in ("torch", "jax", "tensorflow"):
        script = str(ROOT / "examples" / "back_ends_keras.py")
        done = bringup_run("--framework", framework, "--chip", "t4", "--out", framework, script)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / framework / "summary.json").read_text(encoding="utf-8"))
        assert summary["framework"] == framework and summary["launches"] > 10
        losses[framework] = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", done.stdout, re.M)]
    assert len(losses["torch"]) == 20
    np.testing.assert_allclose(losses["jax"], losses["torch"], rtol=1e-5)
    np.testing.assert_allclose(losses["tensorflow"], losses["torch"], rtol=1e-5)
