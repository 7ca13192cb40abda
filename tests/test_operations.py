"""Every operation computes what NumPy computes and the gradient of that, for all shapes, dtypes and memory layouts."""

import math

import numpy as np
import pytest

from engine import Value, stack
from tests.gradcheck import apart, check_gradients, upstream
from tests.misuse import TYPE, VALUE, check, misuse, values
from tests.operations import EPS, EVERY_OPERATION, LAYOUTS, OPERATIONS, RESHAPES, Case, case, examples, laid_out, naming

f32, f64 = np.float32, np.float64
RANDOM_CASES = 30  # of each operation


# ---- The table at work ----------------------------------------------------------------------------------------------


def compare_with_reference(case, dtype=f64):
    """The result of an operation, whose operands keep their memory layout, with that of its reference."""
    out, expected = case(*map(Value, case.arrays)), np.asarray(case.expected())
    assert out.shape == expected.shape, f"shape {out.shape} instead of {expected.shape}"
    assert np.result_type(out.data) == (case.row.dtype or dtype), f"dtype {out.dtype}"
    np.testing.assert_allclose(out.data, expected, rtol=case.row.tolerance, atol=case.row.tolerance)


def results(case, arrays):
    """What an operation makes of arrays, and the gradients that the arrays get from a random one of the result."""
    operands = [Value(a) for a in arrays]
    out = case(*operands)
    (out * upstream(out.shape).astype(out.dtype)).sum().backward_all()
    for v in operands:
        assert v.grad.dtype == v.data.dtype and v.grad.shape == v.data.shape
    return [out.data, *(v.grad for v in operands)]


def assert_equal_but_for_rounding(computed, expected):
    """BLAS may add up in another order where memory is laid out in another way."""
    for a, b in zip(computed, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15 * np.abs(b).max(initial=1))


@EVERY_OPERATION
def test_results_are_those_of_the_reference(name):
    for c in examples(name):
        with naming(c):
            compare_with_reference(c)


@EVERY_OPERATION
def test_gradients_are_central_differences(name):
    for c in examples(name):
        with naming(c):
            check_gradients(c, *c.arrays, eps=EPS)


@EVERY_OPERATION
def test_random_cases(name):
    """Random shapes and options: results, gradients, and that memory layout changes neither."""
    for seed in range(RANDOM_CASES):
        c = case(name, seed=seed)
        with naming(c):
            compare_with_reference(c)
            check_gradients(c, *c.arrays, eps=EPS, seed=seed)
            plain = [np.array(a, f64, order="C") for a in c.arrays]
            assert_equal_but_for_rounding(results(c, c.arrays), results(c, plain))


@pytest.mark.parametrize("layout", list(LAYOUTS))
@EVERY_OPERATION
def test_memory_layout_changes_neither_results_nor_gradients(name, layout):
    for c in examples(name):
        with naming(c):
            changed = [laid_out(a, layout) for a in c.arrays]
            plain = [np.array(a, f64, order="C") for a in changed]
            assert_equal_but_for_rounding(results(c, changed), results(c, plain))


@EVERY_OPERATION
def test_inputs_are_never_modified_and_may_be_read_only(name):
    for c in examples(name):
        copies = [a.copy() for a in c.arrays]
        for a in c.arrays:
            a.flags.writeable = False
        with naming(c):
            operands = [Value(a) for a in c.arrays]
            out = c(*operands)
            out.backward_all()
            out.backward_all()
            for v, a, copy in zip(operands, c.arrays, copies):
                np.testing.assert_array_equal(a, copy)
                assert v.data is a
                assert v.grad.flags.writeable


@pytest.mark.parametrize("dtype", [f32, f64])
@EVERY_OPERATION
def test_dtype_is_kept_in_result_and_gradients(name, dtype):
    for c in examples(name):
        with naming(c):
            operands = c.values(dtype)
            out = c(*operands)
            (out.sum() * 2).backward_all()
            assert out.data.dtype == (c.row.dtype or dtype)
            for v in [out, *operands]:
                assert v.grad.dtype == v.data.dtype and v.grad.shape == v.data.shape


@EVERY_OPERATION
def test_float32_results_are_those_of_float64(name):
    for c in examples(name) + [case(name, seed=seed) for seed in range(5)]:
        with naming(c):
            single = [a.astype(f32) for a in c.arrays]
            in_single, in_double = results(c, single), results(c, [a.astype(f64) for a in single])
            assert [a.dtype for a in in_single] == [f32] * len(in_single)
            assert [a.dtype for a in in_double] == [c.row.dtype or f64] + [f64] * len(c.arrays)
            for a, b in zip(in_single, in_double):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("name", [name for name, row in OPERATIONS.items() if row.numbers])
def test_python_numbers_stay_python_floats(name):
    on_numbers = [c for c in examples(name) if all(a.shape == () for a in c.arrays)]
    assert on_numbers
    for c in on_numbers:
        with naming(c):
            numbers = [float(a) for a in c.arrays]
            check_gradients(c, *numbers, eps=EPS)
            operands = [Value(x) for x in numbers]
            out = c(*operands)
            assert out.data == pytest.approx(float(c.expected()), rel=1e-15)
            assert all(type(x) is float for v in [out, *operands] for x in (v.data, v.grad))
            assert all(v.grad == 0.0 for v in operands)
            out.backward_all()
            assert all(type(x) is float for v in [out, *operands] for x in (v.data, v.grad))


@EVERY_OPERATION
def test_a_case_is_reproduced_by_the_line_that_names_it(name):
    for c in (case(name), case(name, seed=17)):
        line = repr(c)
        assert "\n" not in line
        again = eval(line, {"case": case})
        assert isinstance(again, Case) and again.text == c.text and repr(again) == line
        for a, b in zip(c.arrays, again.arrays, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
            assert (a.strides, a.flags.writeable) == (b.strides, b.flags.writeable)
    with (
        pytest.raises(AssertionError, match=r'(?s)case\("\+", seed=3\).*ZeroDivisionError: mine'),
        naming(case("+", seed=3)),
    ):
        raise ZeroDivisionError("mine")


def test_random_cases_have_what_they_promise():
    """Sizes 0 and 1, every layout, broadcasting of either operand and of both, strides, paddings, bias or none."""
    arithmetic, convolutions = ([case(op, seed=seed) for seed in range(200)] for op in ("+", "conv2d"))
    sizes = {(axis, n) for c in arithmetic for a in c.arrays for axis, n in enumerate(a.shape)}
    assert sizes >= {(axis, n) for axis in range(4) for n in (0, 1, 2, 3)}
    stretched = {tuple(a.shape != c.expected().shape for a in c.arrays) for c in arithmetic}
    assert stretched == {(False, False), (False, True), (True, False), (True, True)}
    arrays = [a for c in arithmetic for a in c.arrays if a.size > 1]
    assert any(a.flags.f_contiguous and not a.flags.c_contiguous for a in arrays)
    assert any(min(a.strides) < 0 for a in arrays)
    assert any(0 in a.strides for a in arrays)
    assert any(not a.flags.writeable for a in arrays)
    assert any(not a.dtype.isnative for a in arrays)
    assert {c.options["stride"] for c in convolutions} == {1, 2, 3, 4}
    assert {c.options["padding"] for c in convolutions} == {0, 1, 2, 3}
    assert {len(c.arrays) for c in convolutions} == {2, 3}
    assert {c.arrays[0].shape[0] for c in convolutions} == {0, 1, 2, 3}


# ---- Each in particular ---------------------------------------------------------------------------------------------


def test_tanh_and_its_gradient_do_not_overflow():
    x = Value(np.array([-1000.0, 1000.0]))
    y = x.tanh()
    y.sum().backward_all()
    np.testing.assert_array_equal(y.data, [-1, 1])
    np.testing.assert_array_equal(x.grad, [0, 0])


@pytest.mark.parametrize("method", ["sum", "mean", "max"])
def test_axis_and_keepdims_may_be_given_by_position(method):
    x = apart(np.random.default_rng(6), (2, 3, 4))
    for axis in (None, 1, (2, 0)):
        for keepdims in (False, True):
            out = getattr(Value(x), method)(axis, keepdims)
            np.testing.assert_array_equal(out.data, getattr(Value(x), method)(axis=axis, keepdims=keepdims).data)
            assert out.shape == getattr(np, method)(x, axis=axis, keepdims=keepdims).shape
            check_gradients(lambda v, a=axis, k=keepdims: getattr(v, method)(a, k), x)


@pytest.mark.parametrize("method", ["sum", "mean", "max"])
def test_reductions_of_a_python_number_are_the_number(method):
    check_gradients(lambda v: getattr(v, method)(), 1.5)
    out = getattr(Value(1.5), method)()
    assert out.data == 1.5 and type(out.data) is float


@pytest.mark.parametrize("case", RESHAPES, ids=str)
def test_reshape_takes_integers_or_one_tuple(case):
    (before,), options = case
    after = options["shape"]
    x = np.random.default_rng(8).standard_normal(before)
    for arguments in (after, (after,), (list(after),)):
        check_gradients(lambda v, arguments=arguments: v.reshape(*arguments), x)
        np.testing.assert_array_equal(Value(x).reshape(*arguments).data, x.reshape(after), strict=True)


def test_reshape_of_a_python_number():
    check_gradients(lambda v: v.reshape(1, 1), 1.5)
    np.testing.assert_array_equal(Value(1.5).reshape(1, 1).data, [[1.5]], strict=True)


@pytest.mark.parametrize("axes", [(2, 0, 1), (0, 2, 1), (-1, -3, -2), (-1, 0, 1)], ids=str)
def test_transpose_takes_integers_or_one_tuple(axes):
    x = np.random.default_rng(8).standard_normal((2, 3, 4))
    for arguments in (axes, (axes,), (list(axes),)):
        check_gradients(lambda v, arguments=arguments: v.transpose(*arguments), x)
        np.testing.assert_array_equal(Value(x).transpose(*arguments).data, x.transpose(axes), strict=True)


def test_transpose_uses_the_axes_of_the_forward_pass():
    x = Value(np.zeros((2, 2)))
    axes, factors = [1, 0], np.arange(4.0).reshape(2, 2)
    loss = (x.transpose(axes) * factors).sum()
    axes.reverse()
    loss.backward_all()
    np.testing.assert_array_equal(x.grad, factors.T)


def test_transpose_without_axes_reverses_them():
    for shape in [(2, 3, 4), (2, 3), (3,), (), (2, 0)]:
        x = np.random.default_rng(8).standard_normal(shape)
        for f in (lambda v: v.transpose(), lambda v: v.T):
            check_gradients(f, x)
            np.testing.assert_array_equal(f(Value(x)).data, x.T, strict=True)
    assert Value(1.5).T.shape == Value(1.5).transpose().shape == () and Value(1.5).T.item() == 1.5
    check_gradients(lambda v: v.T, 1.5)


def test_transpose_and_index_are_views_of_the_data():
    """As NumPy's are: nothing is copied."""
    x = Value(np.zeros((2, 3)))
    for out in (x.T, x.transpose(1, 0), x[1:, ::2], x.reshape(3, 2)):
        assert np.shares_memory(out.data, x.data)


def test_stack_of_numbers_arrays_and_values():
    constant = np.array([1.0, 2.0])
    check_gradients(lambda a, b: stack([a, constant, b, a]), np.array([3.0, 4.0]), np.array([5.0, 6.0]))
    check_gradients(lambda a, b: stack([a, 2, b, a]), 3.0, 4.0)
    np.testing.assert_array_equal(stack([Value(3.0), 2, 4.5]).data, [3, 2, 4.5])


def test_a_python_number_in_a_stack_adapts_to_float32():
    for numbers in ([1.5, Value(np.float32(2))], [Value(np.float32(2)), Value(1.5)]):
        assert stack(numbers).dtype == f32
    assert stack([1.5, Value(2.0)]).dtype == f64


def test_stack_takes_a_list_or_a_tuple_and_the_axis_by_position():
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    for operands in ([a, Value(b)], (Value(a), b)):
        for out in (stack(operands, 1), stack(operands, axis=1)):
            np.testing.assert_array_equal(out.data, np.array([[1.0, 3.0], [2.0, 4.0]]), strict=True)
        np.testing.assert_array_equal(stack(operands).data, np.array([[1.0, 2.0], [3.0, 4.0]]), strict=True)


def test_a_broadcast_view_is_good_data():
    x = Value(np.broadcast_to(np.array([1.0, 2.0]), (3, 2)))
    (x * x).sum().backward_all()
    np.testing.assert_array_equal(x.grad, [[2, 4]] * 3)
    x.grad[0, 0] = 7
    np.testing.assert_array_equal(x.grad, [[7, 4], [2, 4], [2, 4]])


# ---- Indexing -------------------------------------------------------------------------------------------------------


def test_an_element_picked_twice_gets_both_gradients():
    x = Value(np.array([1.0, 2.0, 3.0]))
    (x[[0, 2, 0, -3]] * np.array([1.0, 10.0, 100.0, 1000.0])).sum().backward_all()
    np.testing.assert_array_equal(x.grad, [1101, 0, 10])
    y = Value(np.zeros((2, 2)))
    y[[0, 0, 1], [1, -1, 0]].sum().backward_all()
    np.testing.assert_array_equal(y.grad, [[0, 2], [1, 0]])


@pytest.mark.parametrize("kind", ["integers", "mask", "in_a_tuple", "in_a_list"])
def test_an_index_may_be_changed_before_the_backward_pass(kind):
    x = Value(np.array([1.0, 2.0, 3.0]))
    array = np.array([True, False, True]) if kind == "mask" else np.array([0, 2])
    index = (array,) if kind == "in_a_tuple" else [0, 2] if kind == "in_a_list" else array
    out = x[index]
    if kind == "in_a_list":
        index[:] = [1, 1]
    else:
        array[:] = 1
    out.sum().backward_all()
    np.testing.assert_array_equal(out.data, [1, 3])
    np.testing.assert_array_equal(x.grad, [1, 0, 1])


@pytest.mark.parametrize("data", [1.5, np.array(1.5)], ids=repr)
def test_indexing_a_number(data):
    x = Value(data)
    assert x[()].shape == () and x[()].item() == 1.5
    np.testing.assert_array_equal(x[None].data, [1.5])
    check_gradients(lambda v: v[()], data)
    check_gradients(lambda v: v[None, ...], data)
    assert type(Value(1.5)[()].data) is float


@misuse(
    ("beyond", np.s_[2], IndexError, "out of bounds"),
    ("before", np.s_[-3], IndexError, "out of bounds"),
    ("beyond_on_axis_1", np.s_[0, 3], IndexError, "out of bounds"),
    ("beyond_in_an_array", np.s_[[0, 2]], IndexError, "out of bounds"),
    ("too_many", np.s_[0, 0, 0], IndexError, "too many indices"),
    ("a_mask_of_another_length", np.s_[np.array([True, False, True])], IndexError, "boolean index"),
    ("arrays_of_two_lengths", np.s_[[0, 1, 0], [0, 1]], IndexError, "broadcast"),
    ("a_fraction", np.s_[0.5], IndexError, "only integers"),
    ("a_string", np.s_["a"], IndexError, "only integers"),
    ("two_ellipses", np.s_[..., ...], IndexError, "single ellipsis"),
    ("a_step_of_zero", np.s_[::0], VALUE, "step"),
)
def test_indexing_rejects(call, error, message):
    x = values((2, 3))[0]
    check(lambda: x[call], error, message)
    np.testing.assert_array_equal(x.data, [[1, 2, 3], [4, 5, 6]])


def test_elements_cannot_be_assigned():
    x = values((2,))[0]
    with pytest.raises(TypeError, match="item assignment"):
        x[0] = 1.0
    np.testing.assert_array_equal(x.data, [1, 2])


# ---- max ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, axis, expected",
    [
        ([1, 7, 7, 3], None, [0, 1, 0, 0]),
        ([7, 7, 7], 0, [1, 0, 0]),
        ([[1, 7], [7, 7]], None, [[0, 1], [0, 0]]),
        ([[1, 7], [7, 7]], 0, [[0, 1], [1, 0]]),
        ([[1, 7], [7, 7]], 1, [[0, 1], [1, 0]]),
        ([[1, 7], [7, 7]], (0, 1), [[0, 1], [0, 0]]),
        ([[1, 7], [7, 7]], (1, 0), [[0, 1], [0, 0]]),  # row-major, whatever the order in which the axes are named
        ([[[1, 2], [3, 9]], [[9, 9], [9, 9]]], (2, 0), [[[0, 0], [0, 1]], [[1, 0], [0, 0]]]),
        ([[[1, 2], [3, 9]], [[9, 9], [9, 9]]], (-1, -2), [[[0, 0], [0, 1]], [[1, 0], [0, 0]]]),
        ([-0.0, 0.0], None, [1, 0]),
        ([-math.inf, -math.inf], None, [1, 0]),
        ([1, math.inf, math.inf], None, [0, 1, 0]),
    ],
    ids=str,
)
def test_max_gives_a_tie_to_the_first_in_row_major_order(x, axis, expected):
    for keepdims in (False, True):
        v = Value(np.array(x, float))
        out = v.max(axis, keepdims)
        np.testing.assert_array_equal(out.data, np.max(x, axis=axis, keepdims=keepdims))
        out.sum().backward_all()
        np.testing.assert_array_equal(v.grad, expected)


def test_max_counts_nan_as_the_largest():
    x = Value(np.array([[1.0, math.nan, math.inf], [1.0, 3.0, 2.0]]))
    out = x.max(1)
    np.testing.assert_array_equal(out.data, [math.nan, 3])
    out.sum().backward_all()
    np.testing.assert_array_equal(x.grad, [[0, 1, 0], [0, 1, 0]])
    assert math.isnan(x.max().data)
    assert math.isnan(Value(math.nan).max().data)


@pytest.mark.parametrize(
    "s, axis",
    [((0,), None), ((0,), 0), ((0, 3), None), ((0, 3), 0), ((3, 0), 1), ((0, 0), 0), ((2, 0, 3), (0, 1))],
    ids=str,
)
def test_max_of_nothing_is_a_value_error(s, axis):
    check(lambda: Value(np.zeros(s)).max(axis), VALUE, r"max.*at least one element.*\(.*0.*\)")


@pytest.mark.parametrize("s, axis", [((0, 3), 1), ((3, 0), 0), ((2, 0, 3), (0, 2)), ((0, 2), -1)], ids=str)
def test_max_of_no_rows_is_no_result(s, axis):
    for keepdims in (False, True):
        x = Value(np.zeros(s))
        out = x.max(axis, keepdims)
        np.testing.assert_array_equal(out.data, np.max(x.data, axis=axis, keepdims=keepdims), strict=True)
        out.sum().backward_all()
        assert x.grad.shape == s


# ---- astype ---------------------------------------------------------------------------------------------------------


def test_astype_casts_and_casts_the_gradient_back():
    for before, after in [(f32, f64), (f64, f32), (f32, "longdouble")]:
        x = Value(np.array([1.5, 2.5], before))
        out = x.astype(after)
        np.testing.assert_array_equal(out.data, np.array([1.5, 2.5], after), strict=True)
        (out * np.array([3.0, 4.0], after)).sum().backward_all()
        np.testing.assert_array_equal(x.grad, np.array([3, 4], before), strict=True)


def test_astype_of_a_number():
    v = Value(1.5)
    assert v.astype(f64) is v and v.astype(float) is v
    out = v.astype(f32)
    assert out.dtype == f32 and out.shape == () and out.item() == 1.5
    (out * f32(3)).backward_all()
    assert v.grad == 3.0 and type(v.grad) is float


@pytest.mark.parametrize("dtype", [f32, "float32", np.dtype("f4"), "f"])
def test_astype_of_the_same_dtype_returns_the_value_itself(dtype):
    x = Value(np.ones(2, f32))
    assert x.astype(dtype) is x
    y = x * 2
    assert y.astype(dtype) is y


@misuse(
    ("int", int, TYPE, "astype.*int64"),
    ("bool", bool, TYPE, "astype.*bool"),
    ("float16", np.float16, TYPE, "astype.*float16"),
    ("complex", complex, TYPE, "astype.*complex"),
    ("str", str, TYPE, "astype.*U"),
    ("object", object, TYPE, "astype.*object"),
    ("no_dtype", "x", TYPE, "'x'"),
)
def test_astype_rejects(call, error, message):
    for v in (Value(np.ones(2, f32)), Value(1.5)):
        check(lambda v=v: v.astype(call), error, message)


# ---- At kinks -------------------------------------------------------------------------------------------------------


def gradient(f, x):
    value = Value(x)
    f(value).sum().backward_all()
    return value.grad


def test_relu_has_gradient_0_at_0():
    np.testing.assert_array_equal(gradient(lambda v: v.relu(), np.array([-1.0, -0.0, 0.0, 1.0])), [0, 0, 0, 1])
    for x, expected in [(-1.0, 0.0), (0.0, 0.0), (-0.0, 0.0), (1.0, 1.0)]:
        assert gradient(lambda v: v.relu(), x) == expected


def test_power_0_is_1_and_has_gradient_0_everywhere():
    for exponent in (0, 0.0, -0.0, False):
        x = np.array([-2.0, 0.0, 3.0, math.inf, math.nan])
        np.testing.assert_array_equal((Value(x) ** exponent).data, np.ones(5))
        np.testing.assert_array_equal(gradient(lambda v, n=exponent: v**n, x), np.zeros(5))
        assert gradient(lambda v, n=exponent: v**n, 0.0) == 0.0


def test_powers_at_0():
    np.testing.assert_array_equal(gradient(lambda v: v**1, np.array([0.0])), [1])
    np.testing.assert_array_equal(gradient(lambda v: v**2, np.array([0.0])), [0])
    np.testing.assert_array_equal(gradient(lambda v: v**1.5, np.array([0.0])), [0])
    assert gradient(lambda v: v**1, 0.0) == 1.0


def test_square_root_at_0_has_an_infinite_gradient():
    for x in (np.array([0.0]), 0.0):
        with pytest.warns(RuntimeWarning, match="divide by zero"):
            assert gradient(lambda v: v**0.5, x) == math.inf


def test_log_at_0_is_finite_with_gradient_1_over_eps():
    np.testing.assert_array_equal(Value(np.array([0.0])).log().data, [math.log(1e-12)])
    np.testing.assert_array_equal(gradient(lambda v: v.log(), np.array([0.0])), [1 / 1e-12])
    np.testing.assert_array_equal(gradient(lambda v: v.log(eps=0.25), np.array([0.0])), [4])


# ---- Non-finite and large numbers, nothing at all -------------------------------------------------------------------


def test_nan_and_infinity_are_data():
    x = Value(np.array([math.nan, math.inf, -math.inf, 1.0]))
    np.testing.assert_array_equal(x.relu().data, [math.nan, math.inf, 0, 1])
    np.testing.assert_array_equal(x.tanh().data, [math.nan, 1, -1, math.tanh(1)])
    np.testing.assert_array_equal((x + 1).data, [math.nan, math.inf, -math.inf, 2])
    np.testing.assert_array_equal(x.exp().data, [math.nan, math.inf, 0, math.exp(1)])
    assert math.isnan(x.sum().data)
    assert math.isnan(Value(math.nan).relu().data) and Value(math.inf).relu().data == math.inf


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda: Value(1) / 0, math.inf),
        (lambda: 1 / Value(0), math.inf),
        (lambda: Value(-1.0) / Value(0.0), -math.inf),
        (lambda: Value(0) / 0, math.nan),
        (lambda: Value(0) ** -1, math.inf),
        (lambda: Value(-8.0) ** 0.5, math.nan),
        (lambda: Value(1e300) ** 2, math.inf),
        (lambda: Value(1000.0).exp(), math.inf),
        (lambda: Value(-1.0).log(), math.nan),
        (lambda: Value(0.0).log(0), -math.inf),
        (lambda: Value(np.zeros((0,))).mean(), math.nan),
    ],
)
def test_python_numbers_overflow_with_numpys_warning(f, expected):
    with pytest.warns(RuntimeWarning):
        out = f()
    np.testing.assert_array_equal(out.data, expected)


def test_python_numbers_multiply_and_add_to_infinity():
    assert (Value(1e300) * 1e300).data == math.inf
    assert (Value(1.7e308) + 1.7e308).data == math.inf


@pytest.mark.parametrize(
    "f, shape, expected",
    [
        (lambda x: x @ np.ones((3, 2)), (0, 3), (0, 2)),
        (lambda x: x.sum(0), (0, 3), (3,)),
        (lambda x: stack([x, x], 1), (0, 3), (0, 2, 3)),
        (lambda x: x[[], 1], (2, 3), (0,)),
        (lambda x: x.T, (0, 3), (3, 0)),
    ],
)
def test_empty_arrays_work_forward_and_backward(f, shape, expected):
    x = Value(np.zeros(shape))
    out = f(x)
    assert out.shape == expected
    out.sum().backward_all()
    np.testing.assert_array_equal(x.grad, np.zeros(shape), strict=True)


# ---- Misuse ---------------------------------------------------------------------------------------------------------


@misuse(
    ("string", lambda: Value(1.0).log("1"), TYPE, "eps.*real number.*str"),
    ("none", lambda: Value(1.0).log(None), TYPE, "eps.*real number.*NoneType"),
    ("value", lambda: Value(1.0).log(Value(1.0)), TYPE, "eps.*real number.*Value"),
    ("array", lambda: Value(1.0).log(np.ones(2)), TYPE, "eps.*real number.*ndarray"),
    ("complex", lambda: Value(1.0).log(eps=1j), TYPE, "eps.*real number.*complex"),
)
def test_log_rejects_an_eps_that_is(call, error, message):
    check(call, error, message)


WRONG_AXES = [
    ("beyond", 2, VALUE, "axis.*2"),
    ("before", -3, VALUE, "axis.*-3"),
    ("beyond_in_a_tuple", (0, 2), VALUE, "axis.*2"),
    ("before_in_a_tuple", (-3,), VALUE, "axis.*-3"),
    ("twice", (0, 0), VALUE, r"axis.*\(0, 0\)"),
    ("twice_counted_from_both_ends", (1, -1), VALUE, r"axis.*\(1, -1\)"),
    ("huge", 2**70, VALUE, "axis"),
    ("fraction", 0.5, TYPE, "axis.*integer.*0.5"),
    ("whole_float", 1.0, TYPE, "axis.*integer.*1.0"),
    ("boolean", True, TYPE, "axis.*integer.*True"),
    ("string", "0", TYPE, "axis.*integer.*'0'"),
    ("list", [0], TYPE, "axis.*integer"),
    ("none_in_a_tuple", (None,), TYPE, "axis.*integer.*None"),
    ("array", np.array([0, 1]), TYPE, "axis.*integer"),
    ("value", Value(0.0), TYPE, "axis.*integer"),
]


@pytest.mark.parametrize("method", ["sum", "mean", "max"])
@misuse(*WRONG_AXES)
def test_reductions_reject_an_axis_that_is(method, call, error, message):
    check(lambda: getattr(values((2, 3))[0], method)(axis=call), error, message)


@pytest.mark.parametrize("method", ["sum", "mean", "max"])
@pytest.mark.parametrize("keepdims", [1, 0, None, "yes", 1.0, np.array([True, False]), (1,)], ids=str)
def test_reductions_reject_a_keepdims_that_is_no_boolean(method, keepdims):
    """sum(0, 1) is no sum over axes 0 and 1."""
    check(lambda: getattr(values((2, 3))[0], method)(0, keepdims), TYPE, "keepdims.*(bool|True)")


def test_a_number_has_no_axis_to_sum_over():
    for axis in (0, -1, (0,)):
        for method in ("sum", "mean", "max"):
            check(lambda axis=axis, method=method: getattr(Value(2.0), method)(axis), VALUE, "axis")


@misuse(
    ("too_many", (7,), VALUE, r"reshape \(2, 3\) to \(7,\)"),
    ("too_few", (2, 2), VALUE, r"reshape \(2, 3\) to \(2, 2\)"),
    ("nothing", (), VALUE, r"reshape \(2, 3\) to \(\)"),
    ("empty_tuple", ((),), VALUE, r"reshape \(2, 3\) to \(\)"),
    ("rest_that_does_not_divide", (4, -1), VALUE, r"reshape \(2, 3\) to \(4, -1\)"),
    ("rest_beside_zero", (0, -1), VALUE, r"reshape \(2, 3\) to \(0, -1\)"),
    ("two_rests", (-1, -1), VALUE, r"reshape \(2, 3\) to \(-1, -1\)"),
    ("below_minus_one", (-2, -3), VALUE, "reshape.*-1.*-2"),
    ("huge", (2**70,), VALUE, "reshape"),
    ("huge_product", (2**40, 2**40), VALUE, "reshape"),
    ("fraction", (1.5, 4), TYPE, "reshape.*integer.*1.5"),
    ("whole_float", (3.0, 2), TYPE, "reshape.*integer.*3.0"),
    ("boolean", (True, 6), TYPE, "reshape.*integer.*True"),
    ("string", ("6",), TYPE, "reshape.*integer.*'6'"),
    ("none", (None,), TYPE, "reshape.*integer.*None"),
    ("two_tuples", ((2,), (3,)), TYPE, "reshape.*integer"),
    ("value", (Value(6.0),), TYPE, "reshape.*integer"),
)
def test_reshape_rejects(call, error, message):
    v = values((2, 3))[0]
    check(lambda: v.reshape(*call), error, message)
    assert v.shape == (2, 3)


@misuse(
    ("an_axis_twice", (0, 0), VALUE, r"axis.*\(0, 0\)"),
    ("an_axis_twice_from_both_ends", (1, -1), VALUE, r"axis.*\(1, -1\)"),
    ("too_few", (1,), VALUE, r"transpose.*\(2, 3\).*\(1,\)"),
    ("an_empty_tuple", ((),), VALUE, r"transpose.*\(2, 3\).*\(\)"),
    ("two_tuples", ((1, 0), (0, 1)), TYPE, r"axis.*integer.*\(1, 0\)"),
    ("too_many", (0, 1, 2), VALUE, r"axis.*\(0, 1, 2\)"),
    ("beyond", (0, 2), VALUE, r"axis.*\(0, 2\)"),
    ("before", (0, -3), VALUE, "axis.*-3"),
    ("fraction", (0.5, 1), TYPE, "axis.*integer.*0.5"),
    ("boolean", (True, 0), TYPE, "axis.*integer.*True"),
    ("none", (None,), TYPE, "axis.*integer.*None|transpose"),
    ("string", ("T",), TYPE, "axis.*integer.*'T'"),
    ("value", (Value(1.0), 0), TYPE, "axis.*integer"),
)
def test_transpose_rejects(call, error, message):
    v = values((2, 3))[0]
    check(lambda: v.transpose(*call), error, message)


@misuse(
    ("nothing", lambda: stack([]), VALUE, r"stack.*one or more.*\[\]"),
    ("an_empty_tuple", lambda: stack(()), VALUE, "stack.*one or more"),
    ("different_shapes", lambda: stack(values((2,), (3,))), VALUE, r"stack.*same shape.*\(2,\).*\(3,\)"),
    ("shapes_that_only_broadcast", lambda: stack(values((2, 3), (3,))), VALUE, r"stack.*same shape.*\(2, 3\).*\(3,\)"),
    ("a_number_and_an_array", lambda: stack([1.0, *values((1,))]), VALUE, r"stack.*same shape.*\(\).*\(1,\)"),
    ("a_value", lambda: stack(values((2, 2))[0]), TYPE, "stack.*list.*Value"),
    ("an_array", lambda: stack(np.ones((2, 2))), TYPE, "stack.*list.*ndarray"),
    ("a_generator", lambda: stack(v for v in values((2,))), TYPE, "stack.*list.*generator"),
    ("none", lambda: stack(None), TYPE, "stack.*list.*NoneType"),
    ("a_list_with_none", lambda: stack([*values((2,)), None]), TYPE, "real numbers.*NoneType"),
    ("a_list_with_a_string", lambda: stack([*values((2,)), "ab"]), TYPE, "real numbers.*str"),
)
def test_stack_rejects(call, error, message):
    check(call, error, message)


@misuse(
    ("beyond", 3, VALUE, "axis.*3"),
    ("before", -4, VALUE, "axis.*-4"),
    ("none", None, TYPE, "axis.*integer.*None"),
    ("two", (0, 1), TYPE, "axis.*integer"),
    ("a_tuple_of_one", (0,), TYPE, "axis.*integer"),
    ("no_axes", (), TYPE, "axis.*integer"),
    ("whole_float", 1.0, TYPE, "axis.*integer.*1.0"),
    ("boolean", True, TYPE, "axis.*integer.*True"),
    ("string", "0", TYPE, "axis.*integer.*'0'"),
)
def test_stack_rejects_an_axis_that_is(call, error, message):
    check(lambda: stack(values((2, 3), (2, 3)), axis=call), error, message)


def test_stack_of_numbers_rejects_an_axis_of_none():
    check(lambda: stack([Value(1.0), Value(2.0)], axis=None), TYPE, "axis.*integer.*None")
