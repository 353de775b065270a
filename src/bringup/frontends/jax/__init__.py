"""JAX on the chip: programs that JAX compiles and runs itself."""
