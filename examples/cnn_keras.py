"""Train a small CNN on scikit-learn's digits by Keras's fit: ``bringup run --chip t4 examples/cnn_keras.py``."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(0)
digits = load_digits()
images, labels = digits.images[..., None].astype("float32") / 16, digits.target

model = keras.Sequential(
    [
        layers.Input((8, 8, 1)),
        layers.Conv2D(16, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(images[:1500], labels[:1500], batch_size=50, epochs=3, verbose=2)
_, accuracy = model.evaluate(images[1500:], labels[1500:], verbose=0)
print(f"accuracy on {len(images) - 1500} unseen digits: {accuracy:.1%}")
