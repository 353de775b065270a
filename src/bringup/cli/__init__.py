"""The command line: one file per verb."""

from __future__ import annotations

import sys

import click

from bringup.errors import BringupError
from bringup.text import plain

VERBS = {
    "run": "Run a program on a virtual chip and say where the whole system's time goes.",
    "fit": "Say which chips hold a program, and the largest batch that fits.",
    "compare": "Price one recording on many chips.",
    "chips": "List, show and check chip files.",
    "calibrate": "Measure a device of this machine: its chip file and host file.",
    "check": "The scorecard: how complete is an accelerator's software?",
    "validate": "Check predictions against published measurements.",
}


class _Verbs(click.Group):
    """Imports a verb when it is asked for: the list of the verbs imports none, and `bringup chips` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        import importlib

        command: click.Command = importlib.import_module(f"bringup.cli.{cmd_name}").command
        command.help = command.help or VERBS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bringup", message="bringup %(version)s")
def bringup() -> None:
    """Run an unmodified PyTorch program on an AI chip that you do not have."""


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit code 2."""
    try:
        code = bringup.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        code = 0
    except click.ClickException as error:
        print(f"bringup: {plain(error.format_message())}", file=sys.stderr)
        code = 2
    except BringupError as error:
        print(f"bringup: {plain(str(error))}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("bringup: this command needs PyTorch, and this environment has none: pip install torch", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
