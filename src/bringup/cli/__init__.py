"""The command line: one file per command."""

from __future__ import annotations

import difflib
import sys

import click

from bringup.errors import BringupError
from bringup.text import plain, short

VERBS = {
    "run": "Run a program on a virtual chip and report where the time goes.",
    "fit": "Show which chips have enough memory for a program, and the largest batch.",
    "report": "Make every view of a recording again, on any chip and host.",
    "diff": "Compare two runs: what became slower or faster, what is new, what is gone.",
    "place": "Plan which work belongs on the host and which on the chip.",
    "serve": "Simulate a model or a program under load: percentiles, goodput, KV cache.",
    "compare": "Compare the predictions for one recording on several chips.",
    "sweep": "Price programs on many chips, hosts and variants of chips.",
    "chips": "List, show, check and write chip files.",
    "clusters": "List, show and check clusters and the nodes that they consist of.",
    "driver": "Write a driver for a chip, check it, and find the kernel to write next.",
    "drivers": "List the drivers of real devices, and whether this machine can use them.",
    "calibrate": "Measure a real device and write its chip file and host file.",
    "check": "Check how complete an accelerator's software is (the scorecard).",
    "validate": "Compare predictions with published or own measurements.",
    "doctor": "Examine this installation: what is wrong, and how to mend it.",
}
CONFIGURED = ("run", "fit", "compare", "place")  # their options have defaults in pyproject.toml, see project.PARAMETERS


class _Verbs(click.Group):
    """Imports a command only when it is used: their list imports none, and `bringup chips` imports no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        import importlib

        command: click.Command = importlib.import_module(f"bringup.cli.{cmd_name}").command
        command.help = command.help or VERBS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            nearest = difflib.get_close_matches(args[0][:80], VERBS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`bringup --help` lists them"
            raise click.UsageError(f"there is no command {short(args[0])}: {hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bringup", message="bringup %(version)s")
@click.option("--isolated", is_flag=True, help="Ignore the table [tool.bringup] of pyproject.toml.")
@click.pass_context
def bringup(context: click.Context, isolated: bool) -> None:
    """Run an unmodified PyTorch program on an AI chip that you do not have."""
    verb = context.invoked_subcommand
    if verb in CONFIGURED and not isolated:
        from bringup import project  # the other verbs have no use for it

        context.default_map = {verb: project.settings().defaults(verb)}


def main() -> None:
    """Run the command line. A user's mistake gives one sentence on stderr and exit code 2."""
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
        from bringup.core_build import NEEDS_TORCH  # `bringup --help` has no use for it

        print(f"bringup: {NEEDS_TORCH}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
