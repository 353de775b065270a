"""Sweep files: what is read, and one sentence for each mistake."""

from pathlib import Path

import pytest

from bringup import BringupError
from bringup.sweep import file
from tests.sweep.sweeps import SMALL, sweep_of


def test_range_has_both_ends(tmp_path: Path) -> None:
    text = SMALL + "[ranges]\nmemory.bandwidth_gb_s = [1000, 4000, 7]\ncompute.cores = {values = [8, 64]}\n"
    assert sweep_of(tmp_path, text).ranges == {
        "memory.bandwidth_gb_s": (1000, 1500, 2000, 2500, 3000, 3500, 4000),
        "compute.cores": (8, 64),
    }


def test_paths_are_relative_to_the_sweep_file(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SMALL.replace('"t4"', '"mine.toml"'))
    assert sweep.chips == [str(tmp_path / "mine.toml"), "h100-sxm", "tpu-v3"]


def test_program_is_named_after_its_file_or_report() -> None:
    titles = [
        file.Program(script="a/train.py").title,
        file.Program(trace="bringup-digits/trace.npz").title,
        file.Program(trace="bringup-digits").title,
        file.Program(trace="x.npz", name="mine").title,
    ]
    assert titles == ["train", "bringup-digits", "bringup-digits", "mine"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('["eager", "graph"]', "[]", "modes is empty, so the sweep would have no configuration"),
        ('chips = ["t4", "h100-sxm", "tpu-v3"]', "chips = []", "chips is empty"),
        ("[[programs]]", "[arguments]\nbatch = []\n[[programs]]", "arguments.batch is empty"),
        ("dispatch_scale = [1.0, 0.5]", "dispatch_scale = [0.5, 0.5]", "dispatch_scale names 0.5 twice"),
        ("hosts =", "hostz =", "hostz is not a key of a sweep file: did you mean hosts?"),
        ("trace =", "tracce =", "programs.0.tracce is not a key of a sweep file: did you mean trace?"),
        ('trace = "mlp.npz"', 'trace = "mlp.npz"\nscript = "a.py"', "a program has either a script or a trace"),
        ('trace = "mlp.npz"', 'trace = "mlp.npz"\ncuda = true', "a trace has no arguments"),
        ('name = "big"', 'name = "mlp"', "two programs have the name mlp"),
        ('name = "big"', 'name = "a\\u001bb"', "a text may not have the character"),
        ("[[programs]]", "[arguments]\nbatch = [1, 2]\n[[programs]]", "mlp is no script: give its script instead"),
        ("[[programs]]", "[arguments]\nchip = [1]\n[[programs]]", "arguments.chip is the name of another column"),
        ("[[programs]]", "[arguments]\nChip = [1]\n[[programs]]", "arguments.Chip is the name of another column"),
        ("[[programs]]", "[arguments]\na = [1]\nA = [1]\n[[programs]]", "arguments.A is the name of another column"),
        ('trace = "mlp.npz"', 'script = "a.py"\nnames = {batch = "BATCH"}', "names has batch, which is no axis"),
        ("[[programs]]", "[arguments]\nbatch = [[1]]\n[[programs]]", "arguments.batch has [1]: give texts, numbers"),
        ("[[programs]]", "[ranges]\na.b = [1, 2]\n[[programs]]", "ranges.a.b: give [low, high, number of values]"),
        ("[[programs]]", "[ranges]\na.b = [2, 1, 3]\n[[programs]]", "ranges.a.b: 2 to 1 is empty"),
        ("[[programs]]", "[ranges]\na.b = [1, 2, 0]\n[[programs]]", "ranges.a.b: the number of values, 0, must be"),
        ("[[programs]]", "[ranges]\na.b = [1, 2, 1]\n[[programs]]", "ranges.a.b: one value cannot reach"),
        ("[[programs]]", "[ranges]\na.b = {values = []}\n[[programs]]", "ranges.a.b: values is empty"),
        ("[[programs]]", "[ranges]\na.b = 'x'\n[[programs]]", "ranges.a.b: give [low, high, number of values]"),
        ("chips =", "chips ==", "is not valid TOML"),
        (
            "modes =",
            'placements = ["best"]\nmodes =',
            "placements are planned for a chip as it runs by default: leave modes",
        ),
        ('modes = ["eager", "graph"]', "placements = []", "placements is empty"),
        (
            'trace = "mlp.npz"',
            'model = "llama.py"',
            "llama is a model, which is served: add rates = [...] under [serving]",
        ),
        ("[[programs]]", "[serving]\nrates = [1]\n[[programs]]", "modes is no axis of programs that are served"),
        ("[[programs]]", "[serving]\nrates = []\n[[programs]]", "serving.rates is empty, so the sweep would have no"),
        (
            "[[programs]]",
            "[serving]\nrate = [1]\n[[programs]]",
            "serving.rate is not a key of a sweep file: did you mean",
        ),
    ],
)
def test_mistake_is_one_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert old in SMALL
    with pytest.raises(BringupError) as error:
        sweep_of(tmp_path, SMALL.replace(old, new, 1))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sweep.toml"))


def test_missing_key_and_file(tmp_path: Path) -> None:
    with pytest.raises(BringupError, match="programs is missing"):
        sweep_of(tmp_path, 'chips = ["t4"]\n')
    with pytest.raises(BringupError, match="there is no such sweep file"):
        file.load(tmp_path / "other.toml")
