"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bringup.errors import BringupError
from bringup.machine.files import DEFAULT_HOST, available_chips

Number = TypeVar("Number")
Command = TypeVar("Command", bound=Callable[..., Any])

host_option = click.option(
    "--host", default=None, metavar="NAME|FILE", help=f"Host to predict for (default: {DEFAULT_HOST})."
)
FORMATS = ("text", "github", "json")
OUTPUT_HELP = "Print text, one line of JSON, or text with annotations and a job summary for GitHub Actions."


def output_options(what: str) -> Callable[[Command], Command]:
    """Return the options ``--output-format`` and ``--json``, which set the parameter ``output``.

    Args:
        what: is printed as JSON, in words.
    """
    output_format = click.option(
        "--output-format", "output", type=click.Choice(FORMATS), default="text", show_default=True, help=OUTPUT_HELP
    )
    as_json = click.option("--json", "as_json", is_flag=True, help=f"Print {what} as one line of JSON instead of text.")

    def add(function: Command) -> Command:
        @functools.wraps(function)
        def called(*arguments: Any, as_json: bool, output: str, **options: Any) -> Any:
            return function(*arguments, output="json" if as_json else output, **options)

        return output_format(as_json(called))  # type: ignore[return-value]

    return add


def complete_chips(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return what completes the last chip of a list in a shell."""
    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in available_chips() if name.startswith(last)]


def quantity(parse: Callable[[str], Number]) -> Callable[[click.Context, click.Parameter, str | None], Number | None]:
    """Return the callback of an option that is a number with its unit, read by a function of `bringup.units`."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> Number | None:
        try:
            return None if value is None else parse(value)
        except BringupError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return read


def host_clock_option(measured: str, default: str | None = "modelled") -> Callable[[Command], Command]:
    """Return the option ``--host-clock``.

    Args:
        measured: the time of the measured clock, in words.
        default: the clock without the option; None is that of the recording.
    """
    return click.option(
        "--host-clock",
        type=click.Choice(["modelled", "measured"]),
        default=default,
        show_default=default or "that of the recording",
        help=f"Host time between launches: from the host file, or {measured}.",
    )


class DryCommand(click.Command):
    """A command whose ``--dry`` may have no value, which click allows only for the last option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the default value to a ``--dry`` without one."""
        options = [item for item in self.params if isinstance(item, click.Option)]
        with_value = {name for item in options if not item.is_flag for name in item.opts} - {"--dry"}
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] != "--":
            if args[place] == "--dry":
                args[place] = "--dry=stand-in"
            place += 2 if args[place] in with_value else 1
        return super().parse_args(ctx, args)
