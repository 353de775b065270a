"""Train one model of Keras on any back end: 20 losses, which are equal on all three.

``bringup run --framework jax examples/back_ends_keras.py``, also with ``tensorflow`` and ``torch``.
"""

import keras
import numpy as np
from keras import layers

BATCH, STEPS = 16, 20

rng = np.random.default_rng(0)
keras.utils.set_random_seed(0)
images = rng.normal(size=(BATCH * STEPS, 12, 12, 3)).astype("float32")
labels = rng.integers(0, 4, BATCH * STEPS)

model = keras.Sequential(
    [
        layers.Input((12, 12, 3)),
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(32, activation="gelu"),
        layers.Dense(4),
    ]
)
# The weights do not depend on the back end's random numbers.
model.set_weights(
    [0.1 * rng.normal(size=weight.shape) if weight.ndim > 1 else weight for weight in model.get_weights()]
)
model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))


class Losses(keras.callbacks.Callback):
    """Prints the mean loss so far after each step."""

    def on_train_batch_end(self, batch, logs=None):  # noqa: D102
        print(f"step {batch + 1}: loss {float(logs['loss']):.7f}")


model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Losses()])
