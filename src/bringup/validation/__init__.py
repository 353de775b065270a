"""How far predictions are from measurements that others published: the error band of every report.

`measurements` are single figures that ship with bringup; `read_folder` reads whole published sets. `errors` predicts
their launches, `programs` records whole programs in dry form and prices them, `fit` finds the constants of the model on
a named part of the rows.
"""

from __future__ import annotations

from bringup.pricing.errors import Errors, error_band, errors, grouped, summarize
from bringup.pricing.measurements import Measurement, measurements
from bringup.validation.readers import MeasurementSet, read_folder

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
