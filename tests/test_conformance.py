"""The page of what runs says what the tests hold, and nothing else."""

import re

from . import conformance
from .layers import EXACT, LAYERS, NOT_COMPARED
from .models import MODELS
from .native import test_layers as native


def test_every_layer_that_is_not_compared_has_a_reason() -> None:
    without = {model.name for model in (*MODELS.values(), *LAYERS.values()) if not model.native}
    assert without == {*NOT_COMPARED, *(name for name in native.CANNOT if name in LAYERS)}


class TestPage:
    def test_is_what_the_command_prints(self) -> None:
        assert conformance.PAGE.read_text(encoding="utf-8") == conformance.page()

    def test_every_model_and_layer_has_a_row(self) -> None:
        layers = {row.layer for row in conformance.rows()}
        assert layers == {*map(conformance.label, MODELS), *LAYERS, *EXACT}

    def test_every_fault_that_is_named_is_listed(self) -> None:
        named = set(re.findall(r"fault (\d+)", conformance.page()))
        assert named <= {str(number) for number in conformance.FAULTS}
        assert {"1", "2", "3", "4", "11", "15", "16"} == named
