"""JAX's settings that decide which numbers a computation gives."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._keys import MAPPABLE

_NARROW: dict[Any, str] = {
    np.dtype("float64"): "float32",
    np.dtype("complex128"): "complex64",
    np.dtype("int64"): "int32",
    np.dtype("uint64"): "uint32",
}


@contextmanager
def without_mesh() -> Iterator[None]:
    """Let no mesh of devices be in force inside the block, in this thread alone: what is traced keeps its mesh."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        yield


class Numerics(NamedTuple):
    """The settings of one moment.

    Attributes:
      enable_x64: whether there are 64-bit numbers.
      dtype_promotion: how operands of two dtypes become one.
      matmul_precision: of products where the code asks for none.
      prng_impl: of keys that are made from seeds.
    """

    enable_x64: bool
    dtype_promotion: str
    matmul_precision: str | None
    prng_impl: str

    @classmethod
    def now(cls) -> "Numerics":
        """Those that are in force in this thread."""
        settings: Any = jax.config  # whose attributes type checkers do not know
        return cls(
            settings.jax_enable_x64,
            settings.jax_numpy_dtype_promotion,
            settings.jax_default_matmul_precision,
            settings.jax_default_prng_impl,
        )

    @classmethod
    def of_capture(cls) -> "Numerics":
        """Those in force, but that keys are of the implementation that draws the same in a batch as alone."""
        return cls.now()._replace(prng_impl=MAPPABLE)

    def for_arguments(self) -> "Numerics":
        """The same with 64-bit numbers where the caller has them, so that an argument is seen as it is."""
        return self._replace(enable_x64=self.enable_x64 or Numerics.now().enable_x64)

    def has(self, dtype: Any) -> bool:
        """Whether JAX has numbers of this dtype; it makes narrower ones of 64 bits where it has none."""
        return self.enable_x64 or jnp.dtype(dtype) not in _NARROW

    def adopted(self, tree: Any) -> Any:
        """The arrays of a tree, with 32 bits instead of 64 where there are no 64-bit numbers."""
        if self.enable_x64:
            return tree

        def narrowed(leaf: jax.Array) -> jax.Array:
            return leaf.astype(_NARROW[leaf.dtype]) if leaf.dtype in _NARROW else leaf

        return jax.tree.map(narrowed, tree)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let them hold inside the block, in this thread alone."""
        if self == Numerics.now():  # to set them anyway would take a tenth of the time of a small step
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(jax.enable_x64(self.enable_x64))
            stack.enter_context(jax.numpy_dtype_promotion(self.dtype_promotion))
            stack.enter_context(jax.default_matmul_precision(self.matmul_precision))
            stack.enter_context(jax.default_prng_impl(self.prng_impl))
            yield
