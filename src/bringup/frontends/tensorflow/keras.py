"""Keras on TensorFlow: `fit` and `evaluate` take batches on the host, and each step is a function on the chip."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from bringup.imports import after_import

_TRAINER = "keras.src.backend.tensorflow.trainer"


def watch_import() -> None:
    """Take over the loop of Keras's steps as soon as the program imports Keras."""
    after_import(_TRAINER, lambda module: _patch(module.TensorFlowTrainer, module.base_trainer.model_supports_jit))


def _patch(trainer: Any, supports_jit: Callable[[Any], bool]) -> None:
    """Let Keras run steps as it does for iterators of Python.

    With an iterator of ``tf.data``, Keras calls one function that takes the batch and makes the step. XLA cannot
    compile that function, because the batch comes from the host.
    """
    make = trainer._make_function

    def make_function(self: Any, step: Callable[..., Any]) -> Callable[[Any], Any]:
        run = make(self, step)

        def call(iterator: Any) -> Any:
            first = next(iterator)  # its StopIteration ends the epoch
            return run(itertools.chain([first], iterator))

        return call

    trainer._make_function = make_function
    # On an accelerator, Keras lets XLA compile a step if all layers allow it. TensorFlow sees no accelerator here.
    trainer._resolve_auto_jit_compile = lambda self: not self._distribute_strategy and supports_jit(self)
