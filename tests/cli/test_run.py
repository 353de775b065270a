"""The command line, as a user sees it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.machine.files import available_chips
from tests.conftest import without_bringup

BRINGUP = [sys.executable, "-m", "bringup"]
PROGRAM = """
import sys, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(4):
    loss = model(torch.randn(16, 32).to("chip")).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("arguments", sys.argv[1:], __name__, "loss", round(loss.item(), 4))
"""
Bringup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bringup(tmp_path: Path) -> Bringup:
    """Run the command in a directory of its own that holds train.py."""
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")

    def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        environment = without_bringup()
        command = [*BRINGUP, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, **options
        )  # type: ignore[call-overload,no-any-return]

    return run


def one_sentence(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("bringup: ")
    for part in parts:
        assert part in done.stderr


def test_run_prints_the_summary_and_writes_the_report(bringup: Bringup, tmp_path: Path) -> None:
    done = bringup("run", "--chip", "t4", "train.py", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "arguments ['--epochs', '1'] __main__ loss" in done.stdout
    written = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert (written["chip"], written["host"], written["link"]) == ("t4", "xeon-8275cl", "pcie3 x16")
    assert (written["error_band"], written["error_band_of"], written["error_band_rows"]) == (None, "none", 0)
    assert written["error_source"] in " ".join(done.stdout.split())  # a host-bound program, and none was measured
    for name in ("device_seconds", "host_seconds"):
        assert f"{written[name] / written['step_seconds']:.0%}" in done.stdout
    assert "report: bringup-train/report.html" in done.stdout
    assert {path.name for path in (tmp_path / "bringup-train").iterdir()} == {
        *("trace.npz", "summary.json", "report.html", "timeline.pftrace.gz")
    }
    assert done.stderr == ""


def test_summary_has_the_promised_fields_and_its_schema(bringup: Bringup, tmp_path: Path) -> None:
    import jsonschema

    from tests.conftest import ROOT

    done = bringup("run", "--chip", "t4", "--json", "train.py")
    printed = json.loads(done.stdout.splitlines()[-1])
    written = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert printed == written
    schema = json.loads((ROOT / "docs" / "summary.schema.json").read_text())
    jsonschema.validate(written, schema)
    assert written["steps"] == 4 and written["steps_by"] == "optimizer"
    assert set(schema["required"]) == set(written)


def test_two_runs_give_the_same_bytes(bringup: Bringup, tmp_path: Path) -> None:
    first, second = (bringup("run", "--chip", "t4", "--out", name, "train.py") for name in ("a", "b"))
    assert first.stdout.replace("a/", "b/") == second.stdout
    for name in ("summary.json", "timeline.pftrace.gz", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_measured_clock_runs(bringup: Bringup, tmp_path: Path) -> None:
    done = bringup("run", "--host-clock", "measured", "train.py")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "bringup-train" / "summary.json").read_text())["host_seconds"] > 0


def test_program_that_fails_keeps_its_traceback_and_leaves_a_report(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + "raise ValueError('mine')\n")
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, cwd=tmp_path)
    done = bringup("run", "train.py")
    assert done.returncode == plain.returncode == 1
    assert done.stderr == plain.stderr
    assert json.loads((tmp_path / "bringup-train" / "summary.json").read_text())["steps"] == 4


def test_program_that_fails_gets_no_advice(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM.replace("range(4)", "range(40)") + "raise ValueError('mine')\n")
    done = bringup("run", "train.py")
    assert "the program ended with an error; this is what it did up to there" in done.stdout
    assert "->" not in done.stdout and "move its model" not in done.stderr
    written = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert written["failed"] and written["bottlenecks"] == []


@pytest.mark.parametrize(
    ("last", "code"), [("import nowhere_", 1), ("raise ValueError('mine')", 1), ("1 +", 1), ("raise SystemExit(2)", 2)]
)
def test_program_that_fails_before_it_uses_the_chip_has_no_report(
    bringup: Bringup, tmp_path: Path, last: str, code: int
) -> None:
    (tmp_path / "ends.py").write_text(f"{last}\n")
    done = bringup("run", "ends.py")
    assert done.returncode == code and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bringup: ")]
    assert line == "bringup: the program ended with an error before it used the chip: there is no report"
    assert not (tmp_path / "bringup-ends").exists() or not list((tmp_path / "bringup-ends").iterdir())


def test_program_that_exits_early_is_not_called_a_failure(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + "import sys\nsys.exit(1)\n")
    done = bringup("run", "train.py")
    assert done.returncode == 1 and "ended with an error" not in done.stdout
    assert not json.loads((tmp_path / "bringup-train" / "summary.json").read_text())["failed"]


@pytest.mark.parametrize(
    ("last", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no')", 1), ("1 +", 1), ("import nowhere_", 1)]
)
def test_exit_code_is_the_programs(bringup: Bringup, tmp_path: Path, last: str, code: int) -> None:
    (tmp_path / "ends.py").write_text(f"import sys\n{last}\n")
    plain = subprocess.run([sys.executable, "ends.py"], capture_output=True, text=True, cwd=tmp_path)
    done = bringup("run", "ends.py")
    assert done.returncode == plain.returncode == code
    assert done.stderr.startswith(plain.stderr)


def test_keras_on_torch_is_told_the_device(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text("import os\nprint('device', os.environ['KERAS_TORCH_DEVICE'])\n")
    assert "device chip\n" in bringup("run", "says.py").stdout
    assert "device cuda\n" in bringup("run", "--cuda", "says.py").stdout


def test_collections_at_exit_are_skipped(bringup: Bringup, tmp_path: Path) -> None:
    last = "import atexit, gc\natexit.register(lambda: print('tracked', len(gc.get_objects())))\n"
    (tmp_path / "train.py").write_text(PROGRAM + last)
    tracked = int(bringup("run", "train.py").stdout.split("tracked")[1])
    assert tracked < 1000  # a recorded program has more than 100,000 objects


def test_finalizers_of_cycles_run_at_exit_as_under_python(bringup: Bringup, tmp_path: Path) -> None:
    last = """
class Log:
    def __init__(self):
        self.file, self.itself = open("log.txt", "w"), self
        self.file.write("the last line")
class Trainer:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("finalized")
"""
    for use, output, text in (("log = Log()", "", "the last line"), ("trainer = Trainer()", "finalized", "")):
        (tmp_path / "log.txt").write_text("")
        (tmp_path / "train.py").write_text(PROGRAM + last + use)
        assert output in bringup("run", "train.py").stdout
        assert (tmp_path / "log.txt").read_text() == text


def test_module_stdin_and_main_are_as_under_python(bringup: Bringup, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("VALUE = 7\n")
    (package / "job.py").write_text(
        "import sys\nfrom .helper import VALUE\nprint(__name__, __package__, VALUE, sys.argv[1:], sys.stdin.read())\n"
        "import __main__\nprint(__main__.VALUE)\n"
    )
    plain = subprocess.run(
        [sys.executable, "-m", "package.job", "a"], capture_output=True, text=True, cwd=tmp_path, input="typed"
    )
    done = bringup("run", "-m", "package.job", "a", input="typed")
    assert plain.stdout == "__main__ package 7 ['a'] typed\n7\n"
    assert done.stdout.startswith(plain.stdout), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_program_as_under_python_and_leaves_a_report(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "waits.py").write_text(
        "import time, torch\nx = torch.ones(4, device='chip') + 1\nprint('ready', flush=True)\n"
        "try:\n    time.sleep(60)\nfinally:\n    print('clean', flush=True)\n"
    )
    command = [*BRINGUP, "run", "waits.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in errors) == ("clean" in output) == (number == signal.SIGINT)
    summary = json.loads((tmp_path / "bringup-waits" / "summary.json").read_text())
    assert (summary["launches"], summary["stopped_by"]) == (2, number.name)
    assert f"{number.name} ended the program; this is what it did up to there" in output


def test_strict_raises_at_the_line(bringup: Bringup, tmp_path: Path) -> None:
    from tests.machine.test_files import EDGE8

    (tmp_path / "mine.toml").write_text(EDGE8.replace('"complex128"]', '"complex128"]\nhost = ["aten::topk int64"]'))
    (tmp_path / "top.py").write_text(
        "import torch\nx = torch.arange(100).to('chip')\nprint(x.topk(2).values.tolist())\n"
    )
    done = bringup("run", "--chip", "./mine.toml", "top.py")
    assert done.stdout.startswith("[99, 98]"), done.stderr
    (ledger,) = json.loads((tmp_path / "bringup-top" / "summary.json").read_text())["fallbacks"]
    assert (ledger["op"], ledger["dtype"], ledger["file"], ledger["line"]) == ("aten::topk", "int64", "top.py", 3)
    assert "aten::topk int64" in done.stdout and "top.py:3" in done.stdout
    done = bringup("run", "--strict", "--chip", "./mine.toml", "top.py")
    assert done.returncode == 1
    assert (
        "aten::topk (int64) would run on the host, launched at top.py:3: chip mine leaves it to the host" in done.stderr
    )


def test_program_without_the_chip_is_told(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "cpu.py").write_text("import torch\nprint(torch.ones(2).sum().item())\n")
    done = bringup("run", "cpu.py")
    assert done.returncode == 0
    assert "launched nothing on the chip" in done.stderr and "use --cuda" in done.stderr
    assert "chip busy" not in done.stdout and "report: " in done.stdout
    assert "use --cuda" not in bringup("run", "--cuda", "cpu.py").stderr


def test_mistakes_are_one_sentence(bringup: Bringup, tmp_path: Path) -> None:
    one_sentence(bringup("run", "--chip", "t5", "train.py"), "no chip is named 't5'", "t4")
    one_sentence(bringup("run", "--host", "xeon", "train.py"), "no host is named 'xeon'")
    one_sentence(bringup("run", "nowhere.py"), "nowhere.py", "there is no such script")
    one_sentence(bringup("run", "-m", "nowhere.job"), "nowhere.job", "no such module")
    one_sentence(bringup("run", "--clock", "fast", "train.py"), "--clock")
    one_sentence(bringup("chips", "show", "t5"), "no chip is named 't5'")
    one_sentence(bringup("chips", "check", "nowhere.toml"), "nowhere.toml", "no such chip file")
    one_sentence(bringup("compare", "nowhere"), "nowhere", "no such trace")
    one_sentence(bringup("fly"), "fly")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    one_sentence(bringup("run", "--out", "foreign", "train.py"), "foreign", "thesis.tex")
    (tmp_path / "file").write_text("mine")
    one_sentence(bringup("run", "--out", "file", "train.py"), "file")
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "bringup-train").exists()


def test_compare_prices_one_recording_on_many_chips(bringup: Bringup, tmp_path: Path) -> None:
    bringup("run", "--chip", "t4", "train.py")
    rows = json.loads(bringup("compare", "bringup-train", "--chips", "t4,a100-sxm-80,tpu-v3", "--json").stdout)
    assert [row["chip"] for row in rows] == ["t4", "a100-sxm-80", "tpu-v3"]
    assert rows[0]["step_seconds"] == json.loads((tmp_path / "bringup-train/summary.json").read_text())["step_seconds"]
    table = bringup("compare", "bringup-train/trace.npz", "--html", "c.html")
    assert table.returncode == 0, table.stderr
    assert "wormhole-n150" in table.stdout
    assert "wormhole-n150" in (tmp_path / "c.html").read_text()


def test_chips_lists_shows_and_checks(bringup: Bringup) -> None:
    names = {row["name"] for row in json.loads(bringup("chips", "--json").stdout)}
    assert {"t4", "h100-sxm", "edge-tpu"} <= names and len(names) >= 42
    listed = bringup("chips").stdout
    assert "not validated" in listed and "validated on 18 programs" in listed  # of v100-sxm
    assert "bandwidth_gb_s" in bringup("chips", "show", "t4").stdout
    assert "valid chip file of t4" in bringup("chips", "check", "t4").stdout


def test_validate_shows_the_errors(bringup: Bringup) -> None:
    done = bringup("validate")
    assert done.returncode == 0, done.stderr
    assert "wormhole-n150" in done.stdout and "predicted" in done.stdout
    found = json.loads(bringup("validate", "--chip", "t4,h100-sxm", "--family", "mm", "--json").stdout)
    assert list(found["chip"]) == ["h100-sxm", "t4", "all"] and list(found["operator"]) == ["mm", "all"]
    assert 0 < found["chip"]["all"]["all"]["mean"] < 0.5
    one_sentence(bringup("validate", "--chip", "t5"), "t5", "wormhole-n150")


def test_no_verb_shows_the_verbs(bringup: Bringup) -> None:
    done = bringup()
    assert done.returncode == 0
    assert "compare" in done.stdout


def test_mistyped_command_gets_the_nearest_one(bringup: Bringup) -> None:
    one_sentence(bringup("runn", "train.py"), "there is no command runn: did you mean run?")
    one_sentence(bringup("xyz"), "there is no command xyz: `bringup --help` lists them")


def test_chips_and_scripts_are_completed(bringup: Bringup, tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        places = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_BRINGUP_COMPLETE": "bash_complete"}
        code = "import sys; from bringup.cli import main; sys.argv = ['bringup']; main()"
        environment = without_bringup() | places
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        return done.stdout.split()

    assert completed("bringup run --chip a100-sxm-40,t") == [
        f"plain,a100-sxm-40,{name}" for name in available_chips() if name.startswith("t")
    ]
    assert completed("bringup run tr") == ["file,tr"]


def test_limits_that_are_exceeded_end_with_exit_code_3(bringup: Bringup, tmp_path: Path) -> None:
    done = bringup("run", "--chip", "t4", "--max-step", "1us", "--max-memory", "100B", "--json", "train.py")
    assert done.returncode == 3
    step, memory = done.stderr.splitlines()
    assert step.startswith("bringup: a step takes ") and " on t4, which exceeds --max-step by " in step
    assert memory.startswith("bringup: tensors hold ") and " which exceeds --max-memory by " in memory
    summary = json.loads(
        (tmp_path / "bringup-train" / "summary.json").read_text()
    )  # the report is written all the same
    assert summary == json.loads(done.stdout.splitlines()[-1])


def test_limits_that_hold_change_nothing(bringup: Bringup) -> None:
    done = bringup("run", "--chip", "t4", "--max-step", "1s", "--max-memory", "14 GiB", "train.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_code_of_the_program_wins_over_limits(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(PROGRAM + "sys.exit(5)\n")
    done = bringup("run", "--max-step", "1us", "ends.py")
    assert done.returncode == 5 and done.stderr == ""


def test_limits_of_a_program_without_launches_do_not_pass(bringup: Bringup, tmp_path: Path) -> None:
    (tmp_path / "cpu.py").write_text("import torch\n")
    done = bringup("run", "--max-step", "1s", "cpu.py")
    assert done.returncode == 3
    assert "the limits cannot be checked: the program launched nothing" in done.stderr


def test_limits_without_a_unit_are_refused_before_the_run(bringup: Bringup, tmp_path: Path) -> None:
    one_sentence(bringup("run", "--max-step", "20", "train.py"), "--max-step", "it has no unit", "20ms")
    one_sentence(bringup("run", "--max-memory", "20ms", "train.py"), "--max-memory", "'ms' is not a unit", "14GiB")
    assert not (tmp_path / "bringup-train").exists()
