"""Prints what XLA is given for the gradients of two models, to be compared between processes."""

import jax

from .bench import SAMPLES, STEPS, Request, bench

# Several hidden groups, and several states in one.
MODELS = ("stack", "alif")
STRATEGIES = ("vmap", "manual")


def main() -> None:
    """Everything lowered, in one text."""
    for name in MODELS:
        made = bench(name, seed=0)
        for strategy in STRATEGIES:
            grad_fn = made.grad_fn(Request(strategy))
            arguments = (made.params, made.start(strategy), *made.data(STEPS, SAMPLES))
            print(jax.jit(grad_fn.__call__).lower(*arguments).as_text())  # noqa: T201


if __name__ == "__main__":
    main()
