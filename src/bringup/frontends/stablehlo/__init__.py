"""StableHLO modules on the chip, such as those that JAX lowers to: every operator launches torch's operators."""
