"""What a program imports for its own kernels; see docs/kernels.md."""

from bringup.triton.numerics import OutputError, check

__all__ = ["OutputError", "check"]
