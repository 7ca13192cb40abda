"""What is no data and no size, for the tests of misuse, and how they look at an error."""

import math
from decimal import Decimal

import numpy as np
import pytest

from engine import Value, no_grad

VALUE, TYPE = ValueError, TypeError


def shape(*sizes):
    """A pattern for a shape in a message."""
    return r"\(" + ", ".join(map(str, sizes)) + r",?\)"


def misuse(*rows):
    """Parametrise a test with rows: an id, a call or its argument, the class of its error, a message pattern."""
    return pytest.mark.parametrize("call, error, message", [pytest.param(*row[1:], id=row[0]) for row in rows])


def check(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error  # not NumPy's AxisError, which is an IndexError as well
    assert "\n" not in str(caught.value)


def values(*shapes):
    return [Value(np.arange(1.0, 1 + math.prod(s)).reshape(s)) for s in shapes]


def made_under_no_grad():
    with no_grad():
        return values((2,))[0] * 2


NOT_DATA = {
    "none": (None, TYPE, "real numbers.*NoneType"),
    "string": ("1", TYPE, "real numbers.*str"),
    "bytes": (b"1", TYPE, "real numbers.*bytes"),
    "complex": (1j, TYPE, "real numbers.*complex"),
    "numpy_complex": (np.complex64(1), TYPE, "real numbers.*complex"),
    "complex_array": (np.ones(2, complex), TYPE, "real numbers.*complex"),
    "object_array": (np.array([1, None], object), TYPE, "real numbers.*object"),
    "object_array_of_numbers": (np.array([1, 2.0], object), TYPE, "real numbers.*object"),
    "string_array": (np.array(["1", "2"]), TYPE, "real numbers"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), TYPE, "real numbers.*datetime"),
    "durations": (np.array([1], "m8[s]"), TYPE, "real numbers.*timedelta"),
    "record_array": (np.zeros(2, [("a", float)]), TYPE, "real numbers"),
    "masked_array": (np.ma.array([1.0, 2.0], mask=[0, 1]), TYPE, "real numbers.*MaskedArray"),
    "ragged_list": ([[1, 2], [3]], VALUE, "inhomogeneous"),
    "list_of_strings": (["a", "b"], TYPE, "real numbers.*list"),
    "list_of_none": ([None, 1.0], TYPE, "real numbers.*list"),
    "dict": ({"a": 1}, TYPE, "real numbers.*dict"),
    "set": ({1, 2}, TYPE, "real numbers.*set"),
    "generator": ((i for i in range(3)), TYPE, "real numbers.*generator"),
    "decimal": (Decimal(1), TYPE, "real numbers.*Decimal"),
    "function": (len, TYPE, "real numbers"),
    "huge_int": (10**400, OverflowError, "too large"),
}

NO_SIZES = [  # for what must be an integer
    ("fraction", 1.5, TYPE, "integer.*1.5"),
    ("whole_float", 1.0, TYPE, "integer.*1.0"),
    ("numpy_float", np.float64(1), TYPE, "integer"),
    ("boolean", True, TYPE, "integer.*True"),
    ("numpy_boolean", np.True_, TYPE, "integer.*True"),
    ("string", "1", TYPE, "integer.*'1'"),
    ("none", None, TYPE, "integer.*None"),
    ("tuple", (1, 1), TYPE, r"integer.*\(1, 1\)"),
    ("array", np.array([1, 1]), TYPE, "integer"),
    ("nan", math.nan, TYPE, "integer.*nan"),
    ("value", Value(1.0), TYPE, "integer"),
]
NO_POSITIVE_SIZES = [
    *NO_SIZES,
    ("zero", 0, VALUE, "at least 1.*0"),
    ("negative", -1, VALUE, "at least 1.*-1"),
]
NO_SIZES_FROM_ZERO = [*NO_SIZES, ("negative", -1, VALUE, "at least 0.*-1")]
