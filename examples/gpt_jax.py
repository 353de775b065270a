"""Train a small GPT on its own source in plain JAX: scan over layers, remat, dropout, AdamW, donated state.

``bringup run --chip tpu-v6e examples/gpt_jax.py``, or ``JAX_PLATFORMS=chip python examples/gpt_jax.py``.
"""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

BATCH, CONTEXT, WIDTH, HEADS, LAYERS, STEPS = 8, 64, 128, 4, 2, 30
DROPOUT, RATE, DECAY = 0.1, 1e-3, 0.1


def init(key):
    """Return the parameters: those of all layers in one array each, for scan."""
    shapes = {
        "qkv": (LAYERS, WIDTH, 3 * WIDTH),
        "out": (LAYERS, WIDTH, WIDTH),
        "up": (LAYERS, WIDTH, 4 * WIDTH),
        "down": (LAYERS, 4 * WIDTH, WIDTH),
    }
    keys = jax.random.split(key, len(shapes) + 2)
    layers = {
        name: 0.02 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    layers |= {"norm1": jnp.ones((LAYERS, WIDTH)), "norm2": jnp.ones((LAYERS, WIDTH))}
    return {
        "tokens": 0.02 * jax.random.normal(keys[-2], (256, WIDTH)),
        "places": 0.02 * jax.random.normal(keys[-1], (CONTEXT, WIDTH)),
        "layers": layers,
        "norm": jnp.ones(WIDTH),
    }


def norm(x, scale):
    return x * scale * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def dropout(key, x):
    return jnp.where(jax.random.bernoulli(key, 1 - DROPOUT, x.shape), x / (1 - DROPOUT), 0)


@jax.checkpoint
def layer(carry, weights):
    """Attention and a perceptron, each after a norm."""
    x, key = carry
    key, first, second = jax.random.split(key, 3)
    q, k, v = jnp.split(norm(x, weights["norm1"]) @ weights["qkv"], 3, axis=-1)
    q, k, v = (item.reshape(BATCH, CONTEXT, HEADS, WIDTH // HEADS) for item in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
    x = x + dropout(first, mixed @ weights["out"])
    hidden = jax.nn.gelu(norm(x, weights["norm2"]) @ weights["up"])
    return (x + dropout(second, hidden @ weights["down"]), key), None


def loss(parameters, tokens, key):
    x = parameters["tokens"][tokens[:, :-1]] + parameters["places"]
    (x, _), _ = jax.lax.scan(layer, (x, key), parameters["layers"])
    logits = norm(x, parameters["norm"]) @ parameters["tokens"].T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -chosen.mean()


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, tokens, key):
    """One step of AdamW."""
    parameters, first, second, count = state
    value, gradients = jax.value_and_grad(loss)(parameters, tokens, key)
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, second, gradients)

    def update(p, m, v):
        return p - RATE * (m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.95**count)) + 1e-8) + DECAY * p)

    return (jax.tree.map(update, parameters, first, second), first, second, count), value


def main():
    text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)
    rng = np.random.default_rng(0)
    parameters = init(jax.random.key(0))
    state = (parameters, jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters), 0.0)
    print(f"{sum(item.size for item in jax.tree.leaves(parameters)):,} parameters on {jax.devices()[0].platform}")
    start = time.perf_counter()
    for step in range(1, STEPS + 1):
        places = rng.integers(0, len(text) - CONTEXT - 1, BATCH)
        tokens = np.stack([text[place : place + CONTEXT + 1] for place in places])
        state, value = train_step(state, tokens, jax.random.key(step))
        if step % 10 == 0:
            print(f"step {step}: loss {value:.3f}, {(time.perf_counter() - start) / step * 1e3:.2f} ms per step")


if __name__ == "__main__":
    main()
