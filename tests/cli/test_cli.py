"""The command line without torch: what does not use the device works, and the rest says that it needs torch."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bringup
from bringup import cli
from bringup.core_build import NEEDS_TORCH
from bringup.report import writer
from tests.conftest import ROOT

WITHOUT_TORCH = """
import runpy
import sys
sys.modules["torch"] = None  # an import of it raises ModuleNotFoundError
runpy.run_module("bringup", run_name="__main__", alter_sys=True)
"""


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (folder / "without_torch.py").write_text(WITHOUT_TORCH)
    return subprocess.run(
        [sys.executable, "without_torch.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report, whose recording has fallbacks, a compiled graph, random numbers and two streams."""
    folder = tmp_path_factory.mktemp("report")
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 2)).to("chip")
    compiled = torch.compile(lambda x: (x * 2.0 + x.sum()).relu())
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record() as trace:
        for _ in range(3):
            loss = model(compiled(torch.randn(4, 8).to("chip"))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.chip.Stream():
            torch.randn(16, device="chip").exp().topk(2).values.erfinv()
        print(loss.item())
    writer.write(bringup.price(trace, "edge8"), folder / "report")
    (folder / "program.py").write_text("import torch\n")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("chips",),
        ("chips", "--json"),
        ("chips", "show", "t4"),
        ("chips", "check", "t4"),
        ("validate", "--chip", "t4"),
        *((verb, "--help") for verb in ("run", "fit", "compare", "chips", "calibrate", "check", "validate")),
        ("--help",),
    ],
    ids=" ".join,
)
def test_command_without_the_device_needs_no_torch(folder: Path, arguments: tuple[str, ...]) -> None:
    done = command(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_recording_has_the_same_prices_without_torch(folder: Path) -> None:
    done = command(folder, "compare", "report", "--all", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    here = subprocess.run(
        [sys.executable, "-m", "bringup", "compare", "report", "--all", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    rows = json.loads(done.stdout)
    assert rows == json.loads(here.stdout) and rows[0]["chip"] == "edge8"
    assert "<html" in (folder / "report" / "compare.html").read_text()


def test_python_prices_and_reports_without_torch(folder: Path) -> None:
    (folder / "prices.py").write_text(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import bringup\n"
        "prediction = bringup.price(bringup.Trace.load('report/trace.npz'), 't4')\n"
        "prediction.to_html('page.html')\n"
        "print(repr(prediction.step_seconds))\n"
    )
    done = subprocess.run([sys.executable, "prices.py"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    trace = bringup.Trace.load(folder / "report" / "trace.npz")
    assert float(done.stdout) == bringup.price(trace, "t4").step_seconds
    assert "<html" in (folder / "page.html").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "program.py"),
        ("check", "--list"),
        ("calibrate",),
        ("validate", "--programs"),
        ("validate", "--live"),
    ],
    ids=" ".join,
)
def test_command_with_the_device_says_that_it_needs_torch(folder: Path, arguments: tuple[str, ...]) -> None:
    done = command(folder, *arguments)
    said = f"bringup: {NEEDS_TORCH}\n"
    assert (done.returncode, done.stdout.strip(), done.stderr) == (2, "", said)


def imported(*arguments: str) -> set[str]:
    program = f"import sys\nsys.argv = {['bringup', *arguments]!r}\nfrom bringup import cli\n"
    program += "try:\n    cli.main()\nexcept SystemExit:\n    pass\n" if arguments else ""
    program += "print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",)], ids=["import", "help", "version"])
def test_start_of_the_command_line_imports_no_verb(arguments: tuple[str, ...]) -> None:
    modules = imported(*arguments)
    assert "click" in modules and modules.isdisjoint({"torch", "numpy", "pydantic", "rich", "jinja2"})
    ours = {name for name in modules if name.startswith("bringup")}
    assert ours == {"bringup", "bringup.cli", "bringup.errors", "bringup.text"}


def test_list_of_chips_imports_neither_torch_nor_reports() -> None:
    modules = imported("chips")
    assert "numpy" in modules and modules.isdisjoint({"torch", "jinja2", "bringup.recording.trace", "bringup.analyse"})


SCHEMA = json.loads((ROOT / "docs" / "commands.schema.json").read_text(encoding="utf-8"))
PRINTED = {  # command -> arguments that print JSON within a second
    "chips": (),
    "chips show": ("t4",),
    "chips check": ("t4",),
    "clusters": (),
    "clusters show": ("dgx-h100",),
    "compare": ("report", "--chips", "t4,tpu-v3"),
    "diff": ("report", "report"),
    "drivers": (),
    "place": ("report",),
    "place --break-even": ("--chip", "t4"),
    "place --offload": ("report",),
    "validate": ("--chip", "t4"),
}


def with_json(command: click.Command, name: str) -> Iterator[str]:
    """Yield the names of the commands that print JSON."""
    if any("--json" in option.opts and option.is_flag for option in command.params if isinstance(option, click.Option)):
        yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            inner = command.get_command(context, verb)
            assert inner is not None
            yield from with_json(inner, f"{name} {verb}")


def test_schema_has_every_command_that_prints_json() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(with_json(cli.bringup, "bringup")) <= set(SCHEMA["$defs"])
    assert {f"bringup {name}" for name in PRINTED} <= set(SCHEMA["$defs"])


@pytest.mark.parametrize("name", PRINTED)
def test_printed_json_follows_its_schema(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli.bringup, [*name.split(), *PRINTED[name], "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    jsonschema.validate(printed, {**SCHEMA, "$ref": f"#/$defs/bringup {name}"})
    described = SCHEMA["$defs"][f"bringup {name}"]
    values, fields = (printed, described) if isinstance(printed, dict) else (printed[0], described["items"])
    assert values and set(fields.get("required", ())) <= set(values)
