"""Train a GPT on its own source with Flax and Optax: scan over layers, remat, dropout, clipped AdamW with a schedule.

``pip install flax optax``, then ``bringup run --chip tpu-v6e examples/gpt_flax.py``.
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

BATCH, CONTEXT, WIDTH, HEADS, LAYERS, STEPS = 8, 64, 128, 4, 2, 30


class Layer(nn.Module):
    """Attention and a perceptron, each after a norm."""

    train: bool

    @nn.compact
    def __call__(self, x, mask):
        """Return what `nn.scan` carries, and no further result."""
        attention = nn.MultiHeadDotProductAttention(HEADS, dropout_rate=0.1, deterministic=not self.train)
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dropout(0.1, deterministic=not self.train)(nn.Dense(WIDTH)(hidden)), None


class Gpt(nn.Module):
    """Layers whose parameters are in one array each."""

    train: bool = True

    @nn.compact
    def __call__(self, tokens):
        """Return the logits of the next tokens."""
        embed = nn.Embed(256, WIDTH)
        places = self.param("places", nn.initializers.normal(0.02), (CONTEXT, WIDTH))
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=LAYERS,
        )
        x, _ = layers(self.train)(embed(tokens) + places, nn.make_causal_mask(tokens))
        return embed.attend(nn.LayerNorm()(x))


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, tokens, key):
    def loss(parameters):
        logits = state.apply_fn(parameters, tokens[:, :-1], rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


def main():
    text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)
    rng = np.random.default_rng(0)
    model = Gpt()
    keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(0)), strict=True))
    parameters = model.init(keys, np.zeros((BATCH, CONTEXT), np.int32))
    schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, 5, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))
    state = TrainState.create(apply_fn=model.apply, params=parameters, tx=optimizer)
    print(f"{sum(item.size for item in jax.tree.leaves(parameters)):,} parameters on {jax.devices()[0].platform}")
    for step in range(1, STEPS + 1):
        places = rng.integers(0, len(text) - CONTEXT - 1, BATCH)
        tokens = np.stack([text[place : place + CONTEXT + 1] for place in places])
        state, value = train_step(state, tokens, jax.random.key(step))
        if step % 10 == 0:
            print(f"step {step}: loss {value:.3f}")


if __name__ == "__main__":
    main()
