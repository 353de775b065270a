"""Train a small GAN on a ring of points with one tf.function: ``bringup run --chip t4 examples/gan_tensorflow.py``."""

import math

import tensorflow as tf

BATCH, NOISE, WIDTH, STEPS = 64, 16, 64, 40


class Network(tf.Module):
    """Two dense layers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        scale = 1 / math.sqrt(inputs)
        self.hidden = tf.Variable(tf.random.normal([inputs, WIDTH]) * scale)
        self.bias = tf.Variable(tf.zeros([WIDTH]))
        self.out = tf.Variable(tf.random.normal([WIDTH, outputs]) / math.sqrt(WIDTH))

    def __call__(self, x):  # noqa: D102
        return tf.nn.leaky_relu(x @ self.hidden + self.bias) @ self.out


tf.random.set_seed(0)
generator, critic = Network(NOISE, 2), Network(2, 1)


@tf.function
def train_step(real, noise):
    """Take a step of both networks; return their losses."""
    with tf.GradientTape(persistent=True) as tape:
        fake = generator(noise)
        on_real, on_fake = critic(real), critic(fake)
        loss_g = tf.reduce_mean(tf.nn.softplus(-on_fake))
        loss_c = tf.reduce_mean(tf.nn.softplus(-on_real) + tf.nn.softplus(on_fake))
    for network, loss in ((generator, loss_g), (critic, loss_c)):
        variables = network.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.05 * gradient)
    return loss_g, loss_c


angles = tf.random.uniform([STEPS * BATCH], 0, 2 * math.pi)
points = tf.data.Dataset.from_tensor_slices(tf.stack([tf.cos(angles), tf.sin(angles)], axis=1)).batch(BATCH)
for step, real in enumerate(points, 1):
    losses = train_step(real, tf.random.normal([BATCH, NOISE]))
    if step % 10 == 0:
        print(f"step {step}: generator {losses[0]:.4f}, critic {losses[1]:.4f}")
