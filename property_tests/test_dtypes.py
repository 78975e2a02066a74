"""What is converted to the captured dtype: what becomes wider within its kind, and bool and integers to fractions."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from pure_batching._conform import conform
from pure_batching.errors import DtypeError

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


def is_accepted(got: np.dtype, want: np.dtype) -> bool:
    """Every value is one of the other dtype, or an integer that becomes the nearest number with a fraction."""
    is_to_fraction = got.kind in "biu" and want.kind in "fc"
    return is_to_fraction or (np.can_cast(got, want, "safe") and not (got.kind in "iu" and want.kind == "b"))


@pytest.mark.xdist_group("bad input")
@pytest.mark.parametrize(("got", "want"), [*itertools.product(DTYPES, DTYPES)])
@given(data=st.data())
def test_widening_alone_is_silent(got: str, want: str, data: st.DataObject) -> None:
    value = data.draw(hnp.arrays(got, 3, elements=hnp.from_dtype(np.dtype(got), allow_subnormal=False)))
    before, spec = value.copy(), jax.ShapeDtypeStruct((3,), np.dtype(want))
    if is_accepted(np.dtype(got), np.dtype(want)):
        converted: Any = conform(value, spec, "value")
        assert converted.dtype == want
        with np.errstate(over="ignore"):  # an integer beyond all numbers of half precision is infinite
            np.testing.assert_array_equal(np.asarray(converted), value.astype(want))
    else:
        with pytest.raises(DtypeError, match=rf"value: got {got}, expected {want}\."):
            conform(value, spec, "value")
    assert value.tobytes() == before.tobytes()
