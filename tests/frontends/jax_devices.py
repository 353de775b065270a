"""Programs of JAX on several devices: prints as JSON how far the chips' results are from those of as many CPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COUNT = 4
P = PartitionSpec
RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(8, 16)).astype(np.float32), RNG.normal(size=(16, 8)).astype(np.float32)
RING = [(place, (place + 1) % COUNT) for place in range(COUNT)]


class On:
    """Devices, and meshes of them."""

    def __init__(self, platform: str) -> None:
        self.devices = jax.devices(platform)[:COUNT]
        self.line, self.square = (
            Mesh(np.array(self.devices), ("x",)),
            Mesh(np.array(self.devices).reshape(2, 2), ("a", "b")),
        )

    def put(self, value: Any, *spec: Any) -> Any:
        mesh = self.square if {"a", "b"} & set(spec) else self.line
        return jax.device_put(value, NamedSharding(mesh, P(*spec)))

    def mapped(self, function: Callable[[Any], Any], out: Any = None) -> Any:
        out = P("x") if out is None else out
        return jax.jit(jax.shard_map(function, mesh=self.line, in_specs=P("x"), out_specs=out))(self.put(X, "x"))


def trained(on: On) -> Any:
    def loss(parameters: Any, x: Any) -> Any:
        return jnp.mean((jax.nn.gelu(x @ parameters[0]) @ parameters[1]) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def step(parameters: Any, x: Any) -> Any:
        value, slopes = jax.value_and_grad(loss)(parameters, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, parameters, slopes), value

    parameters, losses = (on.put(W, None, "x"), on.put(W.T.copy(), "x", None)), []
    for _ in range(5):
        parameters, value = step(parameters, on.put(X))
        losses.append(value)
    return losses, parameters


def ring(part: Any) -> Any:
    def turn(number: Any, state: Any) -> Any:
        return lax.ppermute(state[0], "x", RING), state[1] + number * state[0]

    return lax.fori_loop(0, COUNT, turn, (part, part * 0))[1]


CASES: dict[str, Callable[[On], Any]] = {
    "copy between devices": lambda on: jax.device_put(jax.device_put(X, on.devices[1]) * 2, on.devices[3]),
    "sharded": lambda on: jax.jit(jnp.tanh)(on.put(X, "x")),
    "product": lambda on: jax.jit(jnp.matmul)(on.put(X, None, "x"), on.put(W, "x", None)),
    "product on a square": lambda on: jax.jit(lambda a, b: jax.nn.gelu(a @ b).sum(0))(
        on.put(X, "a", "b"), on.put(W, "b", "a")
    ),
    "without jit": lambda on: on.put(X, "x") @ on.put(W, None, "x"),
    "sorted": lambda on: jax.jit(lambda x: (jnp.sort(x, 0), x.argmax()))(on.put(X, "x")),
    "random": lambda on: jax.jit(
        lambda x: x + jax.random.normal(jax.random.key(3), x.shape),
    )(on.put(X, "x")),
    "psum": lambda on: on.mapped(lambda x: lax.psum(x, "x"), P()),
    "pmax of unsigned": lambda on: on.mapped(lambda x: lax.pmax(lax.bitcast_convert_type(x, jnp.uint32), "x"), P()),
    "all_gather": lambda on: on.mapped(lambda x: lax.all_gather(x, "x", tiled=True) * lax.axis_index("x")),
    "ppermute": lambda on: on.mapped(lambda x: lax.ppermute(x, "x", [(0, 1), (1, 2), (3, 0)])),
    "all_to_all": lambda on: on.mapped(lambda x: lax.all_to_all(x, "x", 1, 0, tiled=True)),
    "psum_scatter": lambda on: on.mapped(lambda x: lax.psum_scatter(x, "x", scatter_dimension=1, tiled=True)),
    "ring": lambda on: on.mapped(ring),
    "pmap": lambda on: jax.pmap(lambda x: lax.psum(x, "i"), axis_name="i", devices=on.devices)(X.reshape(4, 2, 16)),
    "trained": trained,
}


def main() -> None:
    """Run all programs on chips and CPUs."""
    jax.config.update("jax_num_cpu_devices", COUNT)
    for name, case in CASES.items():
        got, wanted = (jax.tree.leaves(case(On(platform))) for platform in ("chip", "cpu"))
        error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(got, wanted, strict=True))
        specs = [[str(getattr(leaf.sharding, "spec", "")) for leaf in leaves] for leaves in (got, wanted)]
        print(json.dumps({"name": name, "error": error, "shardings": specs}))


if __name__ == "__main__":
    main()
