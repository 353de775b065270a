"""Our own measurements of whole programs, predicted with constants that were fitted without their chip's generation.

    python benchmarks/left_out_programs.py DIR

DIR holds the published sets and the folder h100_bringup. `bringup validate --data DIR --leave-one-out` does so for
published operators. What our own measurements gave by hand (docs/validation.md) is not fitted, and stays.
"""

import sys
from dataclasses import fields
from pathlib import Path

from bringup.pricing import DEFAULT
from bringup.validation import read_folder
from bringup.validation.constants_fit import fit, generation
from bringup.validation.measured import TIMES, read_measured, tables

folder = Path(sys.argv[1])
constants = fit(read_folder(folder).rows, leave_out=generation("h100-sxm"))
for field in fields(DEFAULT):  # in place: every price of this process has them
    object.__setattr__(DEFAULT, field.name, getattr(constants, field.name))
for figure, groups in tables(read_measured(folder).comparisons).items():
    if figure in TIMES and "all" in groups:
        e = groups["all"]
        print(f"{figure:24} {e.figures:4} figures  mean {e.mean:6.1%}  median {e.median:6.1%}  bias {e.bias:+6.1%}")
