"""The public names for testing a program's own kernels; see docs/kernels.md."""

from bringup.triton.numerics import OutputError, check

__all__ = ["OutputError", "check"]
