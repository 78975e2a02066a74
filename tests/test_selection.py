"""The default runs every test function, and every value of a parameter, but for models and rules left to others."""

import pytest

from .bench import RULES
from .registry import EVERY
from .selection import BY_DEFAULT, NAMES_OF_ONE_TEST, Selection

OTHER = next(name for name in EVERY if name not in BY_DEFAULT)


def representatives(cases: list[dict[str, object]]) -> set[int]:
    return Selection().representatives(cases)


def product(**values: list[object]) -> list[dict[str, object]]:
    """Every case of some parameters, the last of which changes first."""
    cases: list[dict[str, object]] = [{}]
    for name, choices in values.items():
        cases = [{**case, name: choice} for case in cases for choice in choices]
    return cases


def test_the_registry_knows_every_representative() -> None:
    assert set(EVERY) > BY_DEFAULT


def test_every_value_is_shown_by_as_few_cases_as_can_be() -> None:
    cases = product(name=["a", "b", "c", "d"], window=[1, None], strategy=["loop", "vmap", "manual"])
    taken = [cases[place] for place in representatives(cases)]
    assert len(taken) == 4
    for name in cases[0]:
        assert {case[name] for case in taken} == {case[name] for case in cases}


def test_one_strategy_is_not_the_only_one_that_others_are_shown_with() -> None:
    cases = product(name=["a", "b", "c"], strategy=["loop", "vmap", "manual"])
    assert {cases[place]["strategy"] for place in representatives(cases)} == {"loop", "vmap", "manual"}
    assert len(representatives(cases)) == 3


def test_cases_with_values_of_their_own_all_run() -> None:
    assert representatives(product(refusal=list(range(9)))) == set(range(9))


def test_values_need_no_hash() -> None:
    assert representatives([{"shape": [1]}, {"shape": [2]}, {"shape": [1]}]) == {0, 1}


def test_a_model_that_others_stand_for_is_left_out() -> None:
    assert representatives([{"name": "tutorial"}, {"name": OTHER}, {"name": "LSTMCell"}]) == {0, 2}


@pytest.mark.parametrize("names", [BY_DEFAULT, frozenset(RULES)], ids=["models", "rules"])
def test_one_test_shows_a_few_names_and_all_tests_show_all(names: frozenset[str]) -> None:
    cases = product(name=sorted(names), strategy=["vmap", "manual"])
    selection = Selection()
    by_test = [{cases[place]["name"] for place in selection.representatives(cases)} for _ in names]
    assert {len(shown) for shown in by_test} == {NAMES_OF_ONE_TEST}
    assert set().union(*by_test) == names


def test_every_value_is_shown_though_there_are_enough_models() -> None:
    cases = product(name=sorted(BY_DEFAULT), place=list(range(2 * NAMES_OF_ONE_TEST)))
    assert {cases[place]["place"] for place in representatives(cases)} == set(range(2 * NAMES_OF_ONE_TEST))


def test_a_test_of_nothing_else_keeps_its_first_case() -> None:
    assert representatives([{"name": OTHER, "rule": rule} for rule in ("D_RTRL", "BPTT")]) == {0}


def test_a_test_without_parameters_runs() -> None:
    assert representatives([{}]) == {0}
