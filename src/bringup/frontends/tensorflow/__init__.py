"""TensorFlow and Keras on the chip: functions that XLA compiles run there, the rest of a program on the host."""
