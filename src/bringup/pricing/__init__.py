"""The price of a launch on a chip, in seconds; see `price_table` for the model."""

from bringup.cost.work_table import WorkTable
from bringup.pricing import cpu, systolic, tiles  # noqa: F401 - each registers its class of chips
from bringup.pricing.classes import ChipClass, class_of
from bringup.pricing.constants import DEFAULT, Constants
from bringup.pricing.price import (
    BOUNDS,
    COMPUTE,
    LAUNCH,
    MEMORY,
    Prices,
    efficiency,
    efficiency_names,
    launched_by_cells,
    price_table,
)
from bringup.pricing.rates import (
    ENGINES,
    cache_rate,
    launch_seconds,
    matrix_peak,
    matrix_rate,
    matrix_sustained,
    memory_rate,
    special_rate,
    vector_rate,
)

__all__ = [
    "BOUNDS",
    "COMPUTE",
    "DEFAULT",
    "ENGINES",
    "LAUNCH",
    "MEMORY",
    "ChipClass",
    "Constants",
    "Prices",
    "WorkTable",
    "cache_rate",
    "class_of",
    "efficiency",
    "efficiency_names",
    "launch_seconds",
    "launched_by_cells",
    "matrix_peak",
    "matrix_rate",
    "matrix_sustained",
    "memory_rate",
    "price_table",
    "special_rate",
    "vector_rate",
]
