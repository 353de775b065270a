"""How far predictions are from measurements that others published: the error band of every report.

`measurements` are single figures that ship with bringup; `read_folder` reads whole published sets. `errors` predicts
their launches, `programs` records whole programs in dry form and prices them, `fit` finds the constants of the model on
a named part of the rows.
"""

from __future__ import annotations

from bringup.validation.measurement import Measurement, measurements
from bringup.validation.readers import MeasurementSet, read_folder
from bringup.validation.score import Errors, error_band, errors, grouped, summarize

__all__ = [
    "Errors",
    "Measurement",
    "MeasurementSet",
    "error_band",
    "errors",
    "grouped",
    "measurements",
    "read_folder",
    "summarize",
]
