"""The errors of predictions against published measurements, which give the error band of every report.

`measurements` returns the single measurements that ship with bringup, `read_folder` reads published sets. `errors`
predicts their launches, and `programs` prices dry runs of whole programs. `constants_fit` fits the constants of the
model to a fixed part of the rows.
"""

from __future__ import annotations

from bringup.pricing.bands import error_band
from bringup.pricing.errors import Errors, errors, grouped, summarize
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
