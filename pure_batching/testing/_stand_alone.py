"""The test of one law on one case, as the text of a file that stands alone."""

import textwrap
from collections.abc import Iterable
from typing import Any

import jax

from ._case import STRATEGIES, Case, Subject
from ._written import Expressions

_FILL_IN = '''

def fill_in(what):
    """Stands for what could not be written down."""
    pytest.fail(f"put the right expression in the place of fill_in({what!r})")
'''


def stand_alone(law: str, case: Case, findings: str) -> str:
    """The text of a test that checks a law on a case.

    Args:
      law: its name.
      case: its module, its weights and its data.
      findings: what was found, which becomes a comment.
    """
    known = Expressions()
    settings = _settings(case.subject, known)
    data = _assigned("data", "Data", {"inputs": case.data.inputs, "targets": case.data.targets}, known)
    subject = _assigned("subject", "Subject.of", _of_subject(case.subject), known, "example_inputs=example")
    params = _params(case, known)
    key = known.of(case.key)
    body = [
        *data,
        "example = jax.tree.map(lambda x: x[0, 0], data.inputs)",
        *subject,
        f"params = {params}",
        f"case = Case(subject, params, data, window={case.window}, key={key})",
        f"assert laws.{law}.excuse(case) is None",
        f"laws.{law}(case)",
    ]
    test = [f"def test_{law}():", f"    with {settings}:", *(textwrap.indent(line, "        ") for line in body)]
    helper = _FILL_IN.splitlines() if known.gaps else []
    return "\n".join([*_comments(findings, known), "", *_imports(known), *helper, "", "", *test, ""])


def _comments(findings: str, known: Expressions) -> list[str]:
    advice = [
        "",
        f"Found with jax {jax.__version__} on {jax.default_backend()}. Save this file where its imports work, and",
        "run it by `python -m pytest`: it fails as long as the law does not hold.",
    ]
    if known.gaps:
        advice += ["", "Fill in first, where fill_in(...) stands:", *(f"  {gap}" for gap in known.gaps)]
    return [f"# {line}".rstrip() for line in [*findings.splitlines(), *advice]]


def _imports(known: Expressions) -> list[str]:
    modules = known.modules | {"jax"} | ({"pytest"} if known.gaps else set())
    return [*(f"import {name}" for name in sorted(modules)), f"from {__package__} import Case, Data, Subject, laws"]


def _assigned(name: str, function: str, given: dict[str, Any], known: Expressions, *more: str) -> Iterable[str]:
    """A call whose arguments stand one below the other."""
    arguments = [f"{argument}={known.of(value)}" for argument, value in given.items()]
    return [f"{name} = {function}(", *(f"    {argument}," for argument in [*arguments, *more]), ")"]


def _of_subject(subject: Subject) -> dict[str, Any]:
    """The arguments of `Subject.of`, without those that are as they are by default."""
    given = {"net_factory": subject.net_factory, "algorithm": subject.algorithm, "loss": subject.own_loss}
    if subject.environ:
        given["environ"] = subject.environ
    if subject.axis_name is not None:
        given["axis_name"] = subject.axis_name
    if subject.strategies is not STRATEGIES:
        given["strategies"] = dict(subject.strategies)
    return {**given, "is_exact": True} if subject.is_exact else given


def _params(case: Case, known: Expressions) -> str:
    """The weights; where they are not those of the module, their arrays in its structure."""
    if case.params is case.subject.params:
        return "subject.params"
    leaves = known.of(jax.tree.leaves(case.params))
    return f"jax.tree.unflatten(jax.tree.structure(subject.params), {leaves})"


# JAX's settings, what they are by default, and what sets each inside a block.
_OF_JAX = (
    ("dtype_promotion", "standard", "numpy_dtype_promotion"),
    ("matmul_precision", None, "default_matmul_precision"),
    ("prng_impl", "threefry2x32", "default_prng_impl"),
)


def _settings(subject: Subject, known: Expressions) -> str:
    """The settings that were in force at the capture, as managers of contexts."""
    numerics = subject.learner.source.numerics
    of_brainstate = f"{known.named('brainstate', 'environ.context')}(**{known.of(dict(subject.settings))})"
    managers = [of_brainstate, f"jax.enable_x64({numerics.enable_x64})"]
    for name, usual, manager in _OF_JAX:
        value = getattr(numerics, name)
        value = getattr(value, "value", value)  # newer versions of JAX enumerate some of them
        if value != usual:
            managers.append(f"jax.{manager}({value!r})")
    return ", ".join(managers)
