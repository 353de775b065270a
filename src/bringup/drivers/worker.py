"""A process that runs a part of `bringup driver check`: the driver may end it, or stop it for ever."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from bringup.device.load import use
from bringup.drivers import shadow
from bringup.drivers.basics import CHECKS
from bringup.drivers.cases import DTYPES, Case, cases
from bringup.drivers.compared import Compared, add_rows, rows_of
from bringup.scorecard.framework import comparing
from bringup.scorecard.registry import Failed, NotApplicable, Partial

MARK = "BRINGUP-CASE "  # precedes a line of JSON, because operators may print other lines


def main() -> None:
    """Run the cases of a share, or the other checks; print the result of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", required=True)
    parser.add_argument("--basics", type=int, help="run the checks beside the kernels, from this one on")
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--shares", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first case of the share to run")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--leave-out", action="append", default=[])
    parser.add_argument("--named", default="", help="file that names what the driver is doing")
    arguments = parser.parse_args()
    use(arguments.chip)
    torch.empty(1, device="chip")  # a device that does not open ends it here
    if arguments.basics is not None:
        for name in list(CHECKS)[arguments.basics :]:
            _print(_basic(name))
        return
    torch.ops.bringup.leave_out_kernels(arguments.leave_out)
    shadow.begin(thorough=True, file=arguments.named)
    wanted = tuple(dtype for dtype in DTYPES if not arguments.dtype or str(dtype) in arguments.dtype)
    share = cases(wanted, tuple(arguments.only))[arguments.share :: arguments.shares]
    with comparing():
        for number in range(arguments.first, len(share)):
            _print({"case": number, "name": share[number].name})
            _run(number, share[number])
    _print({"end": True})


def _run(number: int, case: Case) -> None:
    operators: dict[tuple[str, str], Compared] = {}
    errors: list[str] = []
    for error in case.run():
        for _ in range(10):  # errors that the launches of this use left; a device that is lost keeps failing
            try:
                torch.chip.synchronize()  # type: ignore[attr-defined]
                break
            except Exception:
                continue
        report = shadow.report()["rows"]
        add_rows(operators, report)
        if error and not any(row["wrong"] for row in report):
            errors.append(error)
    _print({"case": number, "name": case.name, "rows": rows_of(operators), "errors": errors[:1]})


def _basic(name: str) -> dict[str, Any]:
    try:
        return {"check": name, "verdict": "right", "evidence": CHECKS[name](torch.device("chip"))}
    except (Partial, NotApplicable) as error:  # what is missing is not the driver's
        return {"check": name, "verdict": "right", "evidence": str(error)}
    except Exception as error:
        kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
        return {"check": name, "verdict": "wrong", "evidence": kind + (str(error).splitlines() or [""])[0]}


def _print(line: dict[str, Any]) -> None:
    print(MARK + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
