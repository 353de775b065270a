"""The program's own kernels: Triton on the chip. See docs/kernels.md."""
