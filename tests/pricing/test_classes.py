"""The classes of chips: one for whatever a chip file may say."""

from dataclasses import replace
from typing import get_args

import pytest

import bringup
from bringup import pricing
from bringup.machine.schema import Chip, Matrix
from bringup.pricing import classes


def test_every_kind_of_chip_and_engine_has_a_class() -> None:
    t4 = bringup.load_chip("t4")
    for kind in get_args(Chip.model_fields["kind"].annotation):
        for engine in get_args(Matrix.model_fields["kind"].annotation):
            chip = t4.model_copy(update={"kind": kind, "matrix": t4.matrix.model_copy(update={"kind": engine})})
            assert pricing.class_of(chip).queues == (kind != "cpu")


def test_new_class_of_chips_prices_by_its_own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_classes", dict(classes._classes))
    chip = bringup.load_chip("t4").model_copy(update={"kind": "analog"})
    with pytest.raises(KeyError):
        pricing.class_of(chip)
    t4 = pricing.class_of(bringup.load_chip("t4"))
    classes.register(replace(t4, sustained=lambda constants: 0.25), "analog", matrix="tile")
    chip = chip.model_copy(update={"matrix": chip.matrix.model_copy(update={"sustained": None})})
    assert pricing.matrix_sustained(chip) == 0.25


def test_second_class_for_a_kind_is_refused() -> None:
    with pytest.raises(AssertionError, match="gpu chips with a tile engine already have a class"):
        classes.register(pricing.class_of(bringup.load_chip("t4")), "gpu", matrix="tile")
