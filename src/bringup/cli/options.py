"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bringup.machine.files import DEFAULT_HOST

Command = TypeVar("Command", bound=Callable[..., Any])

host_option = click.option(
    "--host", default=None, metavar="NAME|FILE", help=f"Host to predict for (default: {DEFAULT_HOST})."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as one line of JSON instead of text."
)


def host_clock_option(measured: str) -> Callable[[Command], Command]:
    """Return the option ``--host-clock``.

    Args:
        measured: the time of the measured clock, in words.
    """
    return click.option(
        "--host-clock",
        type=click.Choice(["modelled", "measured"]),
        default="modelled",
        show_default=True,
        help=f"Host time between launches: from the host file, or {measured}.",
    )
