"""Programs of TensorFlow and Keras, each trained on TensorFlow's CPU and then on the chip in one process.

``python -m tests.frontends.tensorflow_programs NAME...`` prints a line of JSON for each: its losses on both. TensorFlow
is no part of the test environment, and a process that has imported it is of no use to other tests.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

STEPS, BATCH = 20, 8
Program = Callable[[], list[float]]
PROGRAMS: dict[str, Program] = {}


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def batches(shape: tuple[int, ...], classes: int = 4, most: int = 0) -> tuple[Any, Any]:
    """Return inputs for all steps, whole numbers if they have a largest value, and classes."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = (STEPS * BATCH, *shape)
    x = rng.integers(0, most, size) if most else rng.normal(size=size).astype("float32")
    return x, rng.integers(0, classes, STEPS * BATCH)


def fitted(model: Any, x: Any, y: Any, **options: Any) -> list[float]:
    """Train a model of Keras for one epoch; return its mean losses, then an evaluation and the sum of predictions."""
    import keras

    losses: list[float] = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(options.pop("optimizer", "adam"), loss, metrics=["accuracy"], **options)
    model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[note])
    predicted = model.predict(x[: 2 * BATCH], batch_size=BATCH, verbose=0)
    return [*losses, *model.evaluate(x, y, batch_size=BATCH, verbose=0), float(abs(predicted).sum())]


@program
def dense_with_dropout() -> list[float]:
    import keras
    from keras import layers

    parts = [layers.Input((20,)), layers.Dense(32, "relu"), layers.Dropout(0.2), layers.Dense(4)]
    # Without jit_compile, TensorFlow's own CPU draws other random numbers than XLA does.
    return fitted(keras.Sequential(parts), *batches((20,)), jit_compile=True)


@program
def convolutional() -> list[float]:
    import keras
    from keras import layers

    parts = [layers.Input((12, 12, 3)), layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization()]
    parts += [layers.ReLU(), layers.MaxPooling2D(), layers.DepthwiseConv2D(3), layers.AveragePooling2D(2)]
    parts += [layers.Conv2D(8, 1, activation="gelu"), layers.Flatten(), layers.Dense(4)]
    return fitted(keras.Sequential(parts), *batches((12, 12, 3)), optimizer=keras.optimizers.SGD(0.01, momentum=0.9))


@program
def recurrent() -> list[float]:
    import keras
    from keras import layers

    parts = [layers.Input((6,), dtype="int32"), layers.Embedding(50, 16), layers.LSTM(16, return_sequences=True)]
    return fitted(keras.Sequential([*parts, layers.GRU(8), layers.Dense(4)]), *batches((6,), most=50))


@program
def attention() -> list[float]:
    import keras
    from keras import layers

    tokens = layers.Input((8,), dtype="int32")
    h = layers.Embedding(50, 16)(tokens)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 8)(h, h, use_causal_mask=True))
    model = keras.Model(tokens, layers.Dense(4)(layers.GlobalAveragePooling1D()(h)))
    return fitted(model, *batches((8,), most=50), optimizer=keras.optimizers.AdamW(1e-3, clipnorm=1.0))


@program
def several_steps_per_execution() -> list[float]:
    import keras
    from keras import layers

    model = keras.Sequential([layers.Input((20,)), layers.Dense(32, "tanh"), layers.Dense(4)])
    return fitted(model, *batches((20,)), optimizer="rmsprop", steps_per_execution=5)


@program
def mixed_precision() -> list[float]:
    import keras
    from keras import layers

    parts = [layers.Input((20,)), layers.Dense(32, "relu", dtype="mixed_bfloat16"), layers.Dense(4)]
    return fitted(keras.Sequential(parts), *batches((20,)))


def weights(*shapes: tuple[int, ...]) -> list[Any]:
    import tensorflow as tf

    scaled = (tf.random.stateless_normal(shape, [7, place]) * 0.1 for place, shape in enumerate(shapes))
    return [tf.Variable(value) for value in scaled]


def dataset(x: Any, y: Any) -> Iterator[Any]:
    import tensorflow as tf

    return iter(tf.data.Dataset.from_tensor_slices((x, y)).map(lambda x, y: (x * 2.0, y)).batch(BATCH))


@program
def custom_loop() -> list[float]:
    import tensorflow as tf

    w, v = weights((20, 32), (32, 4))
    steps = tf.Variable(0, dtype=tf.int64)

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.nn.relu(x @ w) @ v
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        for variable, gradient in zip((w, v), tape.gradient(loss, (w, v)), strict=True):
            variable.assign_sub(0.1 * tf.clip_by_norm(gradient, 1.0))
        steps.assign_add(1)
        return loss

    losses = [float(train_step(x, y)) for x, y in dataset(*batches((20,)))]
    return [*losses, float(steps.numpy()), float(tf.reduce_sum(abs(w)))]


@program
def tape_outside() -> list[float]:
    """Let TensorFlow split a function into a forward and a backward one; the host updates the variables."""
    import tensorflow as tf

    w, v = weights((20, 32), (32, 4))

    @tf.function
    def forward(x: Any) -> Any:
        return tf.nn.softplus(tf.linalg.matmul(x, w)) @ v

    losses = []
    for x, y in dataset(*batches((20,))):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, forward(x)))
        for variable, gradient in zip((w, v), tape.gradient(loss, (w, v)), strict=True):
            variable.assign_sub(0.1 * gradient)
        losses.append(float(loss))
    return losses


@program
def control_flow() -> list[float]:
    import tensorflow as tf

    (w,) = weights((8, 8))

    @tf.function
    def solve(x: Any, repeats: Any) -> Any:
        for _ in tf.range(repeats):
            x = tf.tanh(x @ w)
            if tf.reduce_sum(x) > 0:
                x -= 0.5
        count = 0
        while tf.norm(x) > 0.1:  # ends where data says
            x, count = x * 0.7, count + 1
        w.assign(w * 0.99)
        return tf.reduce_sum(x) + tf.cast(count, tf.float32), tf.reshape(x, [repeats, -1])

    results = []
    for step in range(STEPS):
        total, shaped = solve(tf.random.stateless_normal([4, 8], [step, 1]), tf.constant(2 + step % 2 * 2))
        results += [float(total), float(shaped.shape[0])]
    return results


@program
def masked_sequences() -> list[float]:
    import keras
    from keras import layers

    parts = [layers.Input((7,), dtype="int32"), layers.Embedding(50, 12, mask_zero=True)]
    parts += [layers.Bidirectional(layers.LSTM(8, return_sequences=True)), layers.GRU(6), layers.Dense(4)]
    return fitted(keras.Sequential(parts), *batches((7,), most=50))


@program
def scaled_losses() -> list[float]:
    """Train in float16: the optimizer scales the loss, and leaves out steps whose gradients overflow."""
    import keras
    from keras import layers

    parts = [layers.Input((20,)), layers.Dense(32, "relu", dtype="mixed_float16"), layers.Dense(4)]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), dynamic_growth_steps=5)
    return fitted(keras.Sequential(parts), *batches((20,)), optimizer=optimizer)


@program
def data_set_of_texts() -> list[float]:
    """Fit on a data set that looks up words and shuffles, all on the host."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "green", "blue", "dark"], 5)) for _ in range(STEPS * BATCH)]
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["red", "green", "blue"], [1, 2, 3]), 0)
    data = tf.data.Dataset.from_tensor_slices((texts, rng.integers(0, 4, STEPS * BATCH)))
    data = data.map(lambda text, y: (table.lookup(tf.strings.split(text)), y), num_parallel_calls=2)
    data = data.shuffle(64, seed=1).padded_batch(BATCH, padded_shapes=([5], [])).prefetch(2)
    losses: list[float] = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    parts = [layers.Input((5,), dtype="int32"), layers.Embedding(4, 8), layers.Conv1D(8, 3, activation="relu")]
    model = keras.Sequential([*parts, layers.GlobalMaxPooling1D(), layers.Dense(4)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data, verbose=0, shuffle=False, callbacks=[note])
    return losses


@program
def exported_layers() -> list[float]:
    """Serve a model of Keras that was exported."""
    import keras
    import tensorflow as tf
    from keras import layers

    parts = [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()]
    model = keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(4, "softmax")])
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        loaded = tf.saved_model.load(folder)
        sizes = range(1, STEPS + 1)
        return [float(loaded.serve(tf.random.stateless_normal([size, 8, 8, 3], [size, 1]))[0, 1]) for size in sizes]


@program
def saved_model() -> list[float]:
    import tensorflow as tf

    class Scaled(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            (self.w,) = weights((20, 4))

        @tf.function(input_signature=[tf.TensorSpec([None, 20])])
        def __call__(self, x: Any) -> Any:
            return {"classes": tf.argmax(x @ self.w, 1), "scores": tf.nn.softmax(x @ self.w)}

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(Scaled(), folder)
        loaded = tf.saved_model.load(folder)
    results = []
    for size in (8, 8, 3):
        x = tf.random.stateless_normal([size, 20], [size, 1])
        out = loaded.signatures["serving_default"](x)
        results += [float(out["scores"][0, 0]), float(tf.reduce_sum(out["classes"]))]
    return results


@program
def left_on_the_host() -> list[float]:
    """Functions that XLA cannot compile, before and after one that it can."""
    import numpy as np
    import tensorflow as tf

    (w,) = weights((20, 4))

    @tf.function
    def augment(x: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda array: np.flip(array, 0), [x], tf.float32), [BATCH, 20])

    @tf.function
    def step(x: Any) -> Any:
        w.assign_sub(0.01 * tf.transpose(x) @ (x @ w))
        return tf.reduce_sum(w)

    @tf.function
    def chosen(x: Any) -> Any:
        return tf.size(tf.where(x > 0)) + tf.strings.length(tf.strings.as_string(tf.size(w)))

    return [float(value) for x, _ in dataset(*batches((20,))) for value in (step(augment(x)), chosen(x))]


@program
def gan() -> list[float]:
    import tensorflow as tf

    g, d = weights((8, 20), (20, 1))

    @tf.function
    def train_step(real: Any, noise: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as of_g, tf.GradientTape() as of_d:
            fake = tf.tanh(noise @ g)
            on_real, on_fake = real @ d, fake @ d
            loss_g = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(on_fake), on_fake))
            loss_d = tf.reduce_mean(tf.nn.softplus(-on_real) + tf.nn.softplus(on_fake))
        g.assign_sub(0.1 * of_g.gradient(loss_g, g))
        d.assign_sub(0.1 * of_d.gradient(loss_d, d))
        return loss_g, loss_d

    losses: list[float] = []
    for step, (real, _) in enumerate(dataset(*batches((20,)))):
        losses += map(float, train_step(real, tf.random.stateless_normal([BATCH, 8], [step, 1])))
    return losses


def main(names: list[str]) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import triton  # noqa: F401  (before TensorFlow, as `bringup run` does)

    import bringup

    bringup.use("t4")
    import tensorflow as tf

    def run(name: str) -> list[float]:
        tf.keras.backend.clear_session()
        tf.keras.utils.set_random_seed(0)
        return PROGRAMS[name]()

    wanted = {name: run(name) for name in names}
    from bringup.frontends.tensorflow import functions, keras

    functions.activate()
    keras.watch_import()
    for name in names:
        with bringup.record() as trace:
            losses = run(name)
        lines = {trace.lines[place] for place in trace.columns["line"] if place >= 0}
        print(
            json.dumps(
                {
                    "name": name,
                    "wanted": wanted[name],
                    "losses": losses,
                    "launches": int(trace.launches),
                    "framework": trace.about.get("framework"),
                    "on_host": [(item["name"], item["why"]) for item in trace.about.get("host_functions", [])],
                    "lines": sorted(line for line in lines if line.startswith("tf.")),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(PROGRAMS))
