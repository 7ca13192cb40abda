"""`@` is NumPy's matrix product, with the right gradients for every signature of it."""

import operator

import numpy as np
import pytest

from engine import Value
from tests.gradcheck import check_gradients
from tests.misuse import VALUE, check, shape, values
from tests.operations import MATMULS, case, naming, normal


@pytest.mark.parametrize("shapes", MATMULS, ids=str)
def test_matmul_signature(shapes):
    rng = np.random.default_rng(9)
    a, b = (normal(rng, shape) for shape in shapes)
    check_gradients(operator.matmul, a, b)
    check_gradients(lambda v: v @ b, a)
    check_gradients(lambda v: a @ v, b)
    for out in (Value(a) @ Value(b), Value(a) @ b, a @ Value(b)):
        np.testing.assert_array_equal(out.data, a @ b)


def test_matmul_of_random_shapes():
    for seed in range(100, 180):
        c = case("@", seed=seed)
        with naming(c):
            check_gradients(c, *c.arrays, seed=seed)
            np.testing.assert_array_equal((Value(c.arrays[0]) @ Value(c.arrays[1])).data, np.matmul(*c.arrays))


def test_dot_product_by_hand():
    x, w = Value(np.array([1.0, 2.0])), Value(np.array([3.0, 4.0]))
    y = x @ w
    y.backward_all()
    assert y.data == 11.0
    np.testing.assert_array_equal(x.grad, [3, 4])
    np.testing.assert_array_equal(w.grad, [1, 2])


def test_square_matrix_times_itself():
    v = Value(np.array([[1.0, 2.0], [3.0, 4.0]]))
    (v @ v).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [[7, 11], [9, 13]])  # row sums of v plus column sums, by hand


WRONG_MATMULS = [
    ((3,), (4,)),
    ((2, 3), (2,)),
    ((2, 3), (2, 3)),
    ((3,), (2, 3)),
    ((2, 2, 3), (3, 3, 2)),
    ((2, 3, 4), (3,)),
    ((), (3,)),
    ((3,), ()),
    ((), ()),
    ((2, 3), ()),
]


@pytest.mark.parametrize("shapes", WRONG_MATMULS, ids=str)
def test_matmul_rejects_shapes_that_do_not_fit(shapes):
    a, b = values(*shapes)
    message = "@.*" + ".*".join(shape(*s) for s in shapes)
    for call in (lambda: a @ b, lambda: a @ b.data, lambda: a.data @ b):
        check(call, VALUE, message)


def test_matmul_rejects_numbers():
    (v,) = values((3,))
    for call in (lambda: v @ 2, lambda: 2.0 @ v, lambda: Value(2.0) @ v, lambda: Value(2.0) @ Value(3.0)):
        check(call, VALUE, r"@.*\(\)")
