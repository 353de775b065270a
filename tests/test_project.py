"""The table [tool.bringup] of pyproject.toml."""

from pathlib import Path

import pytest

from bringup import project
from bringup.cli import CONFIGURED
from bringup.errors import BringupError

TABLE = '[project]\nname = "p"\n\n[tool.bringup]\n'


def table(folder: Path, text: str) -> Path:
    file = folder / "pyproject.toml"
    file.write_text(TABLE + text, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRINGUP_CHIP", raising=False)


def test_nearest_table_counts(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    file = table(tmp_path, 'chip = "chips/mine.toml,t4"\nbaseline = "base.json"\nmax_step = "20ms"\n')
    (tmp_path / "a" / "pyproject.toml").write_text('[tool.other]\nname = "bringup"\n', encoding="utf-8")
    settings = project.settings(below)
    assert settings.file == file and settings.max_step == "20ms" and settings.host is None
    assert settings.chip == f"{tmp_path}/chips/mine.toml,t4" and settings.baseline == f"{tmp_path}/base.json"
    assert settings.defaults("run") == {"chips": settings.chip, "max_step": "20ms"}
    assert settings.defaults("fit") == {"chips": settings.chip} and settings.defaults("compare") == {}


def test_without_a_table_nothing_is_set(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("this is [no TOML", encoding="utf-8")  # and none of our business
    assert project.settings(tmp_path).defaults("run") == {}


def test_environment_has_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, 'chip = "t4"\n')
    assert project.settings(tmp_path).chip == "t4"
    monkeypatch.setenv("BRINGUP_CHIP", "l4")
    assert project.settings(tmp_path).chip == "l4"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('max-step = "20ms"\n', "has no key 'max-step': did you mean max_step?"),
        ("max_step = 20\n", "max_step in [tool.bringup] must be a text, got 20"),
        ('zzz = "1"\n', "it may have chip, host, host_clock"),
        ('chip = "t4\n', "is not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    file = table(tmp_path, text)
    with pytest.raises(BringupError) as error:
        project.settings(tmp_path)
    assert says in str(error.value) and str(file) in str(error.value)


def test_run_takes_settings_and_options_win(tmp_path: Path, bringup_run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "add.py").write_text("import torch\ntorch.ones(4, device='chip') + 1\n", encoding="utf-8")
    table(tmp_path, 'chip = "l4"\nmax_memory = "100B"\n')
    done = bringup_run("add.py")
    assert done.returncode == 3 and "on l4" in done.stdout and "exceeds --max-memory" in done.stderr
    done = bringup_run("--chip", "t4", "--max-memory", "1MiB", "add.py")
    assert done.returncode == 0 and "on t4" in done.stdout
    table(tmp_path, 'max_step = "soon"\n')
    done = bringup_run("add.py")
    assert done.returncode == 2 and "'soon' is not a time" in done.stderr and "Traceback" not in done.stderr


def test_the_command_line_knows_which_verbs_have_defaults() -> None:
    assert set(CONFIGURED) == set(project.PARAMETERS)
