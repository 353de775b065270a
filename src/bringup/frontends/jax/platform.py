"""The platform ``chip`` of JAX, which finds `initialize` by the entry point ``jax_plugins``."""

from __future__ import annotations

from typing import Any

PLATFORM = "chip"


def initialize() -> None:
    """Register the platform, if ``JAX_PLATFORMS`` names it. Any other program pays nothing."""
    from jax._src import xla_bridge

    if PLATFORM in (xla_bridge.config.jax_platforms.value or "").split(","):
        xla_bridge.register_backend_factory(PLATFORM, _client, priority=0, fail_quietly=False)


def _client() -> Any:
    """Return JAX's client for the chip. JAX puts the name of the platform before the message of an error."""
    from bringup.frontends.jax import client  # imports torch

    return client.start(PLATFORM)
