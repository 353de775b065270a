"""The notebook extension: ``%load_ext bringup``, then ``%%bringup --chip t4`` at the top of a cell."""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.process import DEFAULT_CHIP, asked_chip
from bringup.project import settings


class CellFailedError(Exception):
    """The cell raised an error, which is shown already; the notebook stops here, as it does after any error."""

    def _render_traceback_(self) -> list[str]:
        """Return no lines: IPython has shown the error of the cell."""
        return []


def load_ipython_extension(shell: Any) -> None:
    """Add the magic to a shell; IPython calls it for ``%load_ext bringup``."""

    @magic_arguments()
    @argument("--chip", metavar="NAME|FILE", help="Chip to predict for (default: BRINGUP_CHIP, or edge8).")
    @argument("--host", metavar="NAME|FILE", help="Host to predict for.")
    @argument("--cuda", action="store_true", help="The device cuda means the chip.")
    @argument("-o", dest="name", metavar="NAME", help="Keep the prediction in this variable.")
    def run_cell(line: str, cell: str) -> None:
        """Run the cell on a virtual chip, record it, and show where its time goes."""
        options = parse_argstring(run_cell, line)
        try:
            _run(shell, cell, options)
        except BringupError as error:  # one sentence, and the cell has failed
            raise UsageError(f"bringup: {error}") from None

    shell.register_magic_function(run_cell, "cell", "bringup")


def _run(shell: Any, cell: str, options: Any) -> None:
    import torch

    from bringup.device.cuda import redirect_cuda
    from bringup.device.load import use, use_unless_chosen
    from bringup.recording.recording import record
    from bringup.report.prediction import price

    project = settings()
    name = options.chip or asked_chip() or project.chip or DEFAULT_CHIP
    chip, host = load_chip(name), load_host(options.host or project.host)
    if options.cuda:
        redirect_cuda()
    use_unless_chosen(name)
    if options.chip and torch.ops.bringup.chip() != chip.name:
        try:
            use(name)
        except BringupError as error:  # a recording can be priced for any chip
            print(f"bringup: recorded on {torch.ops.bringup.chip()}, predicted for {chip.name}: {error}")
    with record() as trace:
        result = _run_as(shell, cell)
    if not result.success:
        raise CellFailedError
    clock: Any = project.host_clock or "modelled"
    prediction = price(trace, chip, host, host_clock=clock)
    if not trace.launches:
        print("bringup: the cell launched nothing on the chip: use the device 'chip', or --cuda if it says cuda")
    else:
        display(prediction)
    if options.name:
        shell.push({options.name: prediction})


def _run_as(shell: Any, cell: str) -> Any:
    """Run the rest of a cell under the cell's own number: its lines are those that the user sees."""
    number = shell.execution_count
    shell.execution_count = len(shell.history_manager.input_hist_parsed) - 1
    try:
        return shell.run_cell("# the magic is the first line\n" + cell)
    finally:
        shell.execution_count = number
