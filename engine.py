"""Micrograd with NumPy arrays: reverse-mode automatic differentiation in one file.

A `Value` holds a number or an array, and remembers which operation computed it from which operands. All operations have
the same form: turn operands into Values, compute the result, define `_backward`, return a new Value. `_backward` is the
chain rule for this one operation: it receives the gradient of the result and returns the gradients of the operands.
`backward_all` calls these functions, from the last Value back to the first.

Why does `_backward` receive the gradient as an argument? In micrograd it reads the gradient from the result. But then
the result holds `_backward`, which holds the result, and because of this cycle the arrays of every training step stay
in memory until Python's garbage collector runs. Here a `_backward` holds no Values, only the arrays of the forward pass
that it needs.

Where is a gradient? During a pass it is in a dict that belongs to this pass, afterwards in `grad` of each Value. So a
pass that fails changes nothing, and a pass may be repeated, or run inside a `_backward`, as checkpointing does.
"""

import contextlib
import contextvars
import copy
import ctypes
import functools
import math
import numbers
import os
import threading

import numpy as np


class Value:
    """A number or an array, and how it was computed.

    You create a leaf; an operation creates a result, which remembers its operands. A constant gets no gradient and
    remembers nothing. Constants are numbers and arrays that are combined with a Value, results computed from constants
    only, and results computed under `no_grad`.

    data           A Python float or a NumPy array. Python's numbers, NumPy's integers and np.float64 become floats, and
                   operations on floats use Python's operators and `math`: with arrays of one element, a graph of
                   numbers would take twice as long. Arrays of float32, float64 and longdouble are kept, not
                   copied; others are converted: float16 and int8 to float32, int64 to float64, as in NumPy.
                   You may assign data of the same shape at any time: a graph keeps what it was computed from. But
                   `v.data -= 1` changes an array itself, also in graphs that hold it, whose backward pass may then
                   silently give wrong gradients: do it only after that. (A float is replaced, which is safe.)
    grad           d(loss)/d(this Value), with data's shape and dtype, where loss is the Value that `backward_all` was
                   called on, or the sum of its elements. The gradients of a leaf add up over several passes until you
                   assign 0 or None; the gradient of a result is that of the last pass, and read-only.
    requires_grad  False for a constant. Before a forward pass, set it to False to freeze a leaf, to True to thaw it.
    label          A name for `draw_graph`.

    An operation of your own returns Value(result, operands, name, _backward), where operands is a Value or a tuple of
    Values. _backward(grad) returns the gradient of the operand, or a tuple of gradients in the order of the operands,
    with None for a constant. Each is an array that is not written to later, and has the shape of its operand, or that
    of the result if broadcasting repeated the operand.
    """

    # A graph of numbers has many Values, and without a dict each takes less time and memory.
    __slots__ = ("_data", "_grad", "_prev", "_op", "_backward", "requires_grad", "label", "__weakref__")

    def __init__(self, data, _children=(), _op="", _backward=None, label=""):
        if type(_children) is not tuple:
            _children = (_children,) if isinstance(_children, Value) else tuple(_children)
        requires_grad = not _children  # for a leaf True, for a result if an operand requires it (any() is slower)
        for child in _children:
            if child.requires_grad:
                requires_grad = True
        if _children and not (requires_grad and _recording.get()):  # a constant, which keeps no operands alive
            requires_grad, _children, _backward = False, (), None
        self._data = data if type(data) is float else _as_data(data)
        self._grad = None  # zero
        self._prev, self._op, self._backward = _children, _op, _backward  # _prev: the operands
        self.requires_grad, self.label = requires_grad, label

    # ---- Backward ---------------------------------------------------------------------------------------------------

    def backward_all(self):
        """Compute d(self)/d(v) for every Value v that self was computed from; if self is an array, d(its sum)/d(v).

        Raises ValueError if no graph leads to self, and ValueError or TypeError if a `_backward` returns gradients that
        do not fit its operands; in that case no gradient is changed.
        """
        if not self.requires_grad:
            raise ValueError("no graph leads to this Value: it comes from constants, or from no_grad()")
        grads = {self: self._like_data(np.ones_like(self._data))}  # d(self)/d(self) = 1
        for node in reversed(topological_order(self)):
            if node in grads and node._prev:  # a result that a gradient has reached
                grad = grads[node]  # complete: all uses of node came before it
                if type(grad) is not float:
                    grad = grads[node] = _read_only(grad)
                returned = _as_tuple(node._backward(grad), node)
                for operand, grad in zip(node._prev, returned):
                    if operand.requires_grad:
                        if type(grad) is not float or type(operand._data) is not float:  # else it fits
                            grad = _fitted(grad, operand, node)
                        grads[operand] = grads[operand] + grad if operand in grads else grad
        with _finishing:  # one thread at a time, as threads may share leaves
            for node, grad in grads.items():  # first all sums, which may fail, then all assignments
                if not node._prev:  # a leaf, whose gradients add up
                    grads[node] = node._like_data(grad if node._grad is None else node._grad + grad)
            for node, grad in grads.items():
                node._grad = grad

    backward = backward_all  # micrograd's and PyTorch's name

    @property
    def grad(self):
        if self._grad is None:
            self._grad = self._like_data(np.zeros_like(self._data))
        return self._grad

    @grad.setter
    def grad(self, grad):
        self._grad = None if grad is None else self._like_data(np.broadcast_to(_as_data(grad), self.shape))

    def _like_data(self, array):
        """The array as a float if data is one, else as a new array of data's dtype."""
        return float(array) if type(self._data) is float else np.array(array, self._data.dtype)

    # ---- Arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other):
        other = as_value(other)

        def _backward(grad):  # d(a + b) = da + db: an operand's gradient is grad times the factor of its d, here 1
            return grad, grad

        return Value(self._data + other._data, (self, other), "+", _backward)

    def __sub__(self, other):
        other = as_value(other)

        def _backward(grad):  # d(a - b) = da - db
            return grad, -grad

        return Value(self._data - other._data, (self, other), "-", _backward)

    def __mul__(self, other):
        other = as_value(other)
        a, b = self._data, other._data

        def _backward(grad):  # d(a b) = b da + a db
            return grad * b, grad * a

        return Value(a * b, (self, other), "*", _backward)

    def __truediv__(self, other):
        other = as_value(other)
        b = other._data
        out = self._data / b

        def _backward(grad):  # d(a / b) = da / b - (a / b) db / b
            grad_a = grad / b
            return grad_a, -grad_a * out

        return Value(out, (self, other), "/", _backward)

    def __pow__(self, exponent):
        """Elementwise power with a number as the exponent."""
        n, x = _checked_float("the exponent of **", exponent), self._data

        def _backward(grad):  # d(x^n) = n x^(n-1) dx; for n = 0 it is 0, also where x^-1 is infinite
            return grad * (n * x ** (n - 1)) if n else grad * 0.0

        return Value(x**n, (self,), f"**{n:g}", _backward)

    def __matmul__(self, other):
        """Matrix product, as NumPy's: (..., m, n) @ (..., n, p) is (..., m, p), and leading axes broadcast. A vector is
        one row on the left, one column on the right, and the result does not have that axis."""
        other = as_value(other)
        a, b = self._data, other._data
        if not self.ndim or not other.ndim or a.shape[-1] != b.shape[-2:][0]:  # b's last axis but one, or its only one
            raise ValueError(f"@ takes (..., m, n) @ (..., n, p), got shapes {self.shape} and {other.shape}")
        a_needed, b_needed = self.requires_grad, other.requires_grad  # because `_backward` must not hold Values
        if b.ndim <= 2:  # b is the same for all rows of a: one large product, faster than one for each matrix in a
            rows, n, p = math.prod(a.shape[:-1]), a.shape[-1], math.prod(b.shape[1:])
            A, B = a.reshape(rows, n), b.reshape(n, p)
            out = (A @ B).reshape(a.shape[:-1] + b.shape[1:])[()]  # [()] makes an array without axes a number

            def _backward(grad):  # d(A B) = dA B + A dB: A gets grad B^T, and B gets A^T grad
                grad = np.reshape(grad, (rows, p))
                grad_a = (grad @ B.T).reshape(a.shape) if a_needed else None
                grad_b = (A.T @ grad).reshape(b.shape) if b_needed else None
                return grad_a, grad_b

        else:
            out = a @ b

            def _backward(grad):  # the same for each matrix, and the sum over the matrices that broadcasting repeated
                A, grad = (a, grad) if a.ndim > 1 else (a[None, :], np.expand_dims(grad, -2))
                grad_a = unbroadcast(grad @ b.swapaxes(-1, -2), a.shape) if a_needed else None
                grad_b = unbroadcast(A.swapaxes(-1, -2) @ grad, b.shape) if b_needed else None
                return grad_a, grad_b

        return Value(out, (self, other), "@", _backward)

    def __neg__(self):
        return self * -1.0

    __radd__ = __add__  # other + self is self + other
    __rmul__ = __mul__

    def __rsub__(self, other):  # other - self
        return as_value(other) - self

    def __rtruediv__(self, other):  # other / self
        return as_value(other) / self

    def __rmatmul__(self, other):  # other @ self
        return as_value(other) @ self

    def __isub__(self, other):  # self -= other
        if self.is_leaf and self.requires_grad:
            raise TypeError("p -= x makes a new Value and leaves p as it is: for a parameter, write p.data -= x")
        return self - other

    # ---- Elementwise functions and reductions -----------------------------------------------------------------------

    def tanh(self):
        out = _math(self._data).tanh(self._data)

        def _backward(grad):  # d tanh(x) = (1 - tanh(x)^2) dx
            return grad * (1 - out * out)

        return Value(out, (self,), "tanh", _backward)

    def relu(self):
        """Elementwise max(x, 0); its derivative at 0 is 0."""
        x = self._data
        out = max(x, 0.0) if type(x) is float else np.maximum(x, 0)

        def _backward(grad):  # dx where x > 0, which is where out > 0
            return grad * (out > 0)

        return Value(out, (self,), "relu", _backward)

    def exp(self):
        out = _math(self._data).exp(self._data)

        def _backward(grad):  # d exp(x) = exp(x) dx
            return grad * out

        return Value(out, (self,), "exp", _backward)

    def log(self, eps=1e-12):
        """Elementwise log(x + eps), finite at x = 0."""
        shifted = self._data + _checked_float("eps", eps)

        def _backward(grad):  # d log(x + eps) = dx / (x + eps)
            return grad / shifted

        return Value(_math(shifted).log(shifted), (self,), "log", _backward)

    def sum(self, axis=None, keepdims=False):
        """The sum over all elements, or over an axis or several in a tuple, which keepdims keeps with length 1."""
        shape = self.shape
        axis = tuple(range(self.ndim)) if axis is None else axis

        def _backward(grad):  # each element counts once: its gradient is the sum's
            return np.broadcast_to(grad if keepdims else np.expand_dims(grad, axis), shape)

        return Value(np.sum(self._data, axis, keepdims=keepdims), (self,), "sum", _backward)

    def mean(self, axis=None, keepdims=False):
        """The mean, over the same axes as in `sum`."""
        total = self.sum(axis, keepdims)
        return total / (np.size(self._data) / max(np.size(total._data), 1))  # by the number of elements in each sum

    def max(self, axis=None, keepdims=False):
        """The largest element, over the same axes as in `sum`. Equal ones share the gradient."""
        axis = tuple(range(self.ndim)) if axis is None else axis
        out = np.max(self._data, axis, keepdims=keepdims)
        largest = self._data == (out if keepdims else np.expand_dims(out, axis))

        def _backward(grad):  # dx where x is the largest
            grad = grad if keepdims else np.expand_dims(grad, axis)
            return largest * (grad / largest.sum(axis, keepdims=True))

        return Value(out, (self,), "max", _backward)

    # ---- Shape, indexing and data -----------------------------------------------------------------------------------

    def reshape(self, *shape):
        """The same elements in another shape, given as integers or as one tuple; one of them may be -1."""
        before = self.shape

        def _backward(grad):  # the same elements, back in their places
            return np.reshape(grad, before)

        return Value(np.asarray(self._data).reshape(*shape), (self,), "reshape", _backward)

    def transpose(self, *axes):
        """The axes in another order, given as integers or as one tuple; without any, in reverse."""
        x = np.asarray(self._data)
        order = np.ravel(axes or range(x.ndim)[::-1]) % x.ndim  # ravel: of integers or a tuple; %: negative axes, too

        def _backward(grad):  # back into the old order: argsort inverts a permutation
            return np.transpose(grad, np.argsort(order))

        return Value(x.transpose(*axes), (self,), "transpose", _backward)

    T = property(transpose)

    def __getitem__(self, index):
        """NumPy's indexing: integers, slices, None, ..., arrays of integers or booleans."""
        x = np.asarray(self._data)
        parts = index if type(index) is tuple else (index,)
        once = all(type(i) in (int, slice, type(None), type(...)) for i in parts)  # these pick no element of x twice
        index = index if once else copy.deepcopy(index)  # its arrays may be changed before the backward pass

        def _backward(grad):  # back to where they came from
            dx = np.zeros_like(x)
            if once:
                dx[index] = grad
            else:
                np.add.at(dx, index, grad)  # slower, but adds up what was picked twice, unlike dx[index] += grad
            return dx

        return Value(x[index], (self,), "[]", _backward)

    def astype(self, dtype):
        """The same numbers in another floating dtype; self, if it is data's. The gradient gets data's dtype again."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        if dtype.char not in "fdg":
            raise TypeError(f"astype takes float32, float64 or longdouble, got {dtype}")
        return Value(np.asarray(self._data).astype(dtype), (self,), "astype", lambda grad: grad)

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, data):
        data = _as_data(data)
        if np.shape(data) != self.shape:
            raise ValueError(f"a Value keeps its shape, which is {self.shape}: got data of shape {np.shape(data)}")
        one_is_float = float in (type(data), type(self._data))  # a float stays a float, an array of shape () an array
        self._data = self._like_data(data) if one_is_float else data

    @property
    def shape(self):
        return () if type(self._data) is float else self._data.shape

    @property
    def dtype(self):
        return np.dtype(float) if type(self._data) is float else self._data.dtype

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def is_leaf(self):
        """True for a Value that you created, False for results and constants."""
        return not self._prev and not self._op

    # ---- What Python expects of a number or a sequence --------------------------------------------------------------

    def item(self):
        """The only element as a Python float. Raises ValueError if there are none or several."""
        return float(np.asarray(self._data).item())

    def __format__(self, spec):
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self):
        return f"Value({self._data}, label={self.label!r})" if self.label else f"Value({self._data})"

    # Comparisons are those of data, but == is true for the same Value only: Values are the keys of dicts.
    def __lt__(self, other):
        return self._data < as_value(other)._data

    def __le__(self, other):
        return self._data <= as_value(other)._data

    def __gt__(self, other):
        return self._data > as_value(other)._data

    def __ge__(self, other):
        return self._data >= as_value(other)._data

    def __bool__(self):
        return bool(self._data)

    def __len__(self):
        return len(self._data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    __contains__ = None  # `x in value` would always be False: each iteration makes new Values

    # With None, `array * value` calls __rmul__, and np.exp(value) is an error. Without, NumPy makes arrays of objects.
    __array_ufunc__ = None

    def __array__(self, *args, **kwargs):
        raise TypeError("NumPy would lose the gradient: use the Value's own methods, stack(), or .data for the numbers")

    __array_function__ = __array__


# ---- Operands and gradients -----------------------------------------------------------------------------------------


def as_value(x):
    """x if it is a Value, else a constant: a Value of this number or array that gets no gradient."""
    if isinstance(x, Value):
        return x
    constant = Value(x, (), "constant")
    constant.requires_grad = False
    return constant


def _as_data(data):
    """The number or array as a Value holds it: as a Python float, or as an array of float32 or wider."""
    if type(data) is np.ndarray and data.dtype.char in "fdg":  # float32, float64, longdouble: the usual case first
        return data
    if isinstance(data, (float, int, np.integer, np.bool_)):  # np.float64, too, is a float
        return float(data)
    data = np.asarray(data)
    if data.dtype.kind not in "fiub":
        raise TypeError(f"a Value holds real numbers, got {data!s:.60} of dtype {data.dtype}")
    return data.astype(np.promote_types(data.dtype, np.float32), copy=False)


def _math(x):
    """The module with exp, log and tanh for x."""
    return math if type(x) is float else np


def unbroadcast(grad, shape):
    """Sum grad over the axes along which NumPy's broadcasting repeated an operand of this shape.

    Broadcasting copies an element to several places, so its gradient is the sum of the gradients of these places. For
    an operand (3, 1) in a result (2, 3, 4) it is the sum over axis 0, which was added, and axis 2, which was stretched.
    """
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    stretched = tuple(added + i for i, n in enumerate(shape) if n == 1)
    total = grad.sum(axis=tuple(range(added)) + stretched, keepdims=True) if added >= 0 else grad
    if total.shape[max(added, 0) :] != shape:
        raise ValueError(f"a gradient of shape {grad.shape} does not fit an operand of shape {shape}")
    return total.reshape(shape)


def _as_tuple(gradients, node):
    """What node._backward returned, made a tuple with one gradient for each operand."""
    gradients = gradients if type(gradients) is tuple else (gradients,)
    if len(gradients) != len(node._prev):
        raise ValueError(f"_backward of {node._op!r} must return {len(node._prev)} gradients, as a tuple if several")
    return gradients


def _fitted(grad, operand, node):
    """The gradient that node._backward returned for operand, in the operand's shape and dtype."""
    data = operand._data
    if type(grad) is type(data) is np.ndarray and grad.shape == data.shape and grad.dtype == data.dtype:
        return grad  # the usual case, without the calls below
    try:
        grad = np.asarray(grad)
        if grad.dtype.kind not in "fiub":
            raise TypeError(f"a gradient must be real numbers, got {grad}")
        if grad.shape not in (operand.shape, node.shape):
            raise ValueError(f"a gradient {grad.shape} for an operand {operand.shape} and a result {node.shape}")
        grad = unbroadcast(grad, operand.shape)
    except (TypeError, ValueError) as error:
        raise type(error)(f"_backward of {node._op!r}: {error}") from None
    return float(grad) if type(data) is float else grad.astype(data.dtype, copy=False)


def _read_only(grad):
    """A read-only view of the gradient: two Values may share the array, as the operands of + do."""
    view = np.asarray(grad)[...]
    view.setflags(write=False)
    return view


# ---- Graph ----------------------------------------------------------------------------------------------------------


def topological_order(root):
    """All Values that root was computed from, constants too, and root: each one after its operands.

    Why an order at all? In b = 2 * a; c = 3 * b; d = b + c the gradient of b has a part from d and a part from c. Going
    on to a after the first part alone would give a too little. Going on after each part would visit a twice, and the
    start of a chain of n such steps 2^n times. In the reversed order every Value is visited once, after everything that
    was computed from it.

    The list to_visit replaces recursion, which a graph of a thousand operations in a row would overflow. When a None is
    popped from it, all operands of the Value before it are in `order`.
    """
    order, visited, to_visit = [], set(), [root]
    while to_visit:
        node = to_visit.pop()
        if node is None:
            order.append(to_visit.pop())
        elif node not in visited:
            visited.add(node)
            to_visit += (node, None)
            to_visit += node._prev
    return order


_finishing = threading.Lock()  # for backward_all
_recording = contextvars.ContextVar("_recording", default=True)  # a thread, or a task of asyncio, has its own


@contextlib.contextmanager
def no_grad():
    """Inside `with no_grad():` no graph is recorded: results are constants."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


# ---- Functions: stack, conv2d, max_pooling, cross_entropy -----------------------------------------------------------


def stack(values, axis=0):
    """Join n Values of one shape along a new axis of length n. Raises ValueError if their shapes differ."""
    values = tuple(as_value(v) for v in values)
    shapes = [v.shape for v in values]
    if len(set(shapes)) != 1:
        raise ValueError(f"stack takes one or more Values of the same shape, got shapes {shapes}")
    arrays = [v._data for v in values]

    def _backward(grad):  # each value gets its part
        return tuple(np.moveaxis(grad, axis, 0))

    out = np.stack(arrays, axis, dtype=np.result_type(*arrays))  # a Python float takes the dtype of the arrays, as in +
    return Value(out, values, "stack", _backward)


def conv2d(x, w, b=None, stride=1, padding=0):
    """2D convolution (cross-correlation, as in every framework): images x (N, C, H, W), kernels w (O, C, kh, kw) and a
    bias b (O,) or None to (N, O, oh, ow), where oh = (H + 2 padding - kh) // stride + 1, and ow likewise.

        out[n, o, Y, X] = b[o] + sum over c, i, j of w[o, c, i, j] * padded[n, c, Y * stride + i, X * stride + j]

    It is computed by im2col. Each row of the result is a product of two matrices: K, whose rows are the kernels, and a
    matrix whose columns are the patches that a kernel covers on its way along this row, both flattened row by row. So
    row k of this matrix holds the pixels under cell k of the kernel, one for each position. For a kernel a b / c d:

        1 2 3     [a b c d] @ 1 2  = result's     [a b c d] @ 4 5  = result's     shifted:  1 2   image row 0
        4 5 6                 2 3    row 0                    5 6    row 1                  2 3
        7 8 9                 4 5                             7 8                           4 5   image row 1
                              5 6                             8 9                           5 6
                                                                                            7 8   image row 2
                                                                                            8 9
    With C channels each row becomes C rows, and with N images each number becomes N numbers side by side.

    `shifted` has the rows of all these matrices once: each image row shifted by 0, 1, ... kw - 1 pixels. Its first four
    rows are the first matrix, its last four the second, so `_patches` finds them without copying.

    Gradients: out = K @ patches, so as for @, K gets grad @ patches^T, and the patches get K^T @ grad. A pixel is in
    several patches and gets the sum of their gradients: first each place in `shifted` gets the sum over the matrices
    that it is in, then each pixel the sum over its shifts. (Product and sums are called a transposed convolution.)

    Inside, images have the axes (row, channel, column, image), so that the rows of a matrix lie one after the other in
    memory. Only the view in `_patches` needs this layout. Elsewhere layout only affects speed: x may lie in memory in
    any way, and max_pooling reads the result, which has this layout, without a copy.
    """
    x, w, b = as_value(x), as_value(w), None if b is None else as_value(b)
    operands = (x, w) if b is None else (x, w, b)
    fit = x.ndim == w.ndim == 4 and x.shape[1] == w.shape[1] and 0 not in w.shape
    if not fit or (b is not None and b.shape != w.shape[:1]):
        raise ValueError(f"conv2d takes x (N, C, H, W), w (O, C, kh, kw), b (O,), got {[v.shape for v in operands]}")
    (N, C, H, W), (O, _, kh, kw) = x.shape, w.shape
    s, p = _checked_int("stride", stride, 1), _checked_int("padding", padding, 0)
    oh, ow = _output_size("conv2d", (H, W), (kh, kw), s, p)
    dtype = np.result_type(*(v.dtype for v in operands))

    padded = np.zeros((H + 2 * p, C, W + 2 * p, N), dtype)
    padded[p : p + H, :, p : p + W] = x.data.transpose(2, 1, 3, 0)
    shifted = np.empty((H + 2 * p, kw, C, ow, N), dtype)
    for j in range(kw):
        shifted[:, j] = padded[:, :, j : j + s * ow : s]
    patches = _patches(shifted, kh, s)  # (oh, kh * kw * C, ow * N)
    K = w.data.transpose(0, 2, 3, 1).reshape(O, kh * kw * C).astype(dtype, copy=False)
    out = _products(K, patches)  # (oh, O, ow * N)
    if b is not None:
        out += b.data[:, None]
    x_needed, w_needed, has_bias = x.requires_grad, w.requires_grad, b is not None

    def _backward(grad):
        grad = np.ascontiguousarray(grad.transpose(2, 1, 3, 0)).reshape(oh, O, ow * N)
        dx = dw = None
        if w_needed:
            dK_T = np.zeros((kh * kw * C, O), dtype)  # (grad @ patches^T)^T, which is faster
            for piece in _pieces(ow * N):
                dK_T += (patches[:, :, piece] @ grad[:, :, piece].swapaxes(1, 2)).sum(0)
            dw = dK_T.reshape(kh, kw, C, O).transpose(3, 2, 0, 1)
        if x_needed:
            dshifted = np.zeros(shifted.shape, dtype)
            dpatches = _patches(dshifted, kh, s)  # a view of dshifted: what is added to a patch is added there
            # A += over all matrices would add only one of the gradients of a place that several of them share. But
            # matrices Y and Y + apart share none, as apart * s >= kh. So every apart-th matrix is added at once.
            apart = math.ceil(kh / s)
            for first in range(apart):
                dpatches[first::apart] += _products(K.T, grad[first::apart])
            dpadded = np.zeros((H + 2 * p, C, W + 2 * p, N), dtype)
            dpadded[:, :, : s * ow : s] = dshifted[:, 0]  # faster than to add it to zeros
            for j in range(1, kw):
                dpadded[:, :, j : j + s * ow : s] += dshifted[:, j]
            dx = dpadded[p : p + H, :, p : p + W].transpose(3, 1, 0, 2)
        return (dx, dw, np.einsum("yol->o", grad)) if has_bias else (dx, dw)  # einsum: grad.sum((0, 2)), but faster

    return Value(out.reshape(oh, O, ow, N).transpose(3, 1, 0, 2), operands, "conv2d", _backward)


def _patches(shifted, kh, s):
    """The matrix of patches for each row of the result: shifted (h, kw, C, ow, N) to (oh, kh * kw * C, ow * N).

    Matrix Y is shifted[Y * s : Y * s + kh] with all rows one below the other, which is how they are in memory. So the
    matrices are a view, although they overlap. (shifted must be contiguous: np.ndarray refuses others.)
    """
    h, kw, C, ow, N = shifted.shape
    image_row, _, row, _, number = shifted.strides  # how many bytes lie between one and the next
    shape = (h - kh) // s + 1, kh * kw * C, ow * N
    return np.ndarray(shape, shifted.dtype, buffer=shifted, strides=(s * image_row, row, number))


def _pieces(length):
    """Slices for products of long matrices: pieces of 2,048 columns stay in the processor's cache."""
    return [slice(i, i + 2048) for i in range(0, length, 2048)]


def _products(matrix, matrices):
    """matrix (p, q) @ matrices (n, q, length), piece by piece."""
    out = np.empty((len(matrices), len(matrix), matrices.shape[2]), matrix.dtype)
    for piece in _pieces(matrices.shape[2]):
        np.matmul(matrix, matrices[:, :, piece], out=out[:, :, piece])
    return out


def _output_size(name, size, window, stride, padding):
    """The number of window positions along each axis of an image."""
    positions = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, window)]
    if min(positions) < 1:
        raise ValueError(f"{name}: a window of {window} is larger than an image of {size} with padding {padding}")
    return positions


def max_pooling(x, stride):
    """The largest element of each stride x stride window: x (N, C, H, W) to (N, C, H // stride, W // stride).

    Rows and columns that do not fill a window are dropped. Of equal elements, as in the background of an image, the
    first one, row by row, gets the gradient, as in PyTorch. (Giving it to each would count it several times; sharing
    it, as `max` does, would be just as correct, but slower.)
    """
    x, s = as_value(x), _checked_int("stride", stride, 1)
    if x.ndim != 4:
        raise ValueError(f"max_pooling takes x (N, C, H, W), got shape {x.shape}")
    oh, ow = _output_size("max_pooling", x.shape[2:], (s, s), s, 0)
    image = np.ascontiguousarray(x.data.transpose(2, 1, 3, 0))  # (H, C, W, N), as in conv2d
    rows = functools.reduce(np.maximum, [image[i : oh * s : s] for i in range(s)])  # (oh, C, W, N)
    out = functools.reduce(np.maximum, [rows[:, :, j : ow * s : s] for j in range(s)])  # (oh, C, ow, N)

    def _backward(grad):  # in each window, the first cell that equals the maximum takes the gradient
        left = np.array(grad.transpose(2, 1, 3, 0), order="C")  # what no cell has taken yet
        dimage = np.empty_like(image)
        dimage[oh * s :] = dimage[:, :, ow * s :] = 0  # rows and columns that do not fill a window
        *cells, last = [np.s_[i : oh * s : s, :, j : ow * s : s] for i in range(s) for j in range(s)]
        for cell in cells:
            taken = left * (image[cell] == out)
            dimage[cell] = taken
            left -= taken
        dimage[last] = left
        return dimage.transpose(3, 1, 0, 2)

    return Value(out.transpose(3, 1, 0, 2), (x,), "max_pooling", _backward)


def cross_entropy(x, y):
    """The mean over the batch of -log softmax(x)[y]: logits x (N, classes), integer labels y (N,), result ().

    The largest logit is subtracted first, which leaves the softmax as it is and keeps exp from overflowing.
    -log softmax(x)[y] is log(sum(exp(x))) - x[y], and the derivative of log(sum(exp(x))) is softmax(x). So, with 1 / N
    from the mean, the gradient is (softmax(x) - onehot(y)) / N.
    """
    x = as_value(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"cross_entropy takes logits x (N, classes), not empty, got shape {x.shape}")
    N, classes = x.shape
    labels = np.array(y)  # a copy, as y may be changed before the backward pass
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.shape != (N,) or labels.min() < 0 or labels.max() >= classes:
        got = f"shape {labels.shape} with {labels.min()} ... {labels.max()}"
        raise ValueError(f"cross_entropy takes {N} labels 0 ... {classes - 1}, got {got}")
    shifted = x.data - x.data.max(axis=1, keepdims=True)  # (N, classes)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = np.arange(N), labels

    def _backward(grad):  # (softmax(x) - onehot(y)) / N
        dx = np.exp(log_softmax)
        dx[picked] -= 1
        return dx * (grad / N)

    return Value(-log_softmax[picked].sum() / N, (x,), "cross_entropy", _backward)


# ---- Modules --------------------------------------------------------------------------------------------------------


class Module:
    """The base of layers and networks: it finds their parameters, and calling it calls `forward`.

    A module of your own makes its parameters and its modules in __init__ and defines forward, as LinearLayer does. The
    engine's layers compute in the floating dtype of their input, although their parameters are float64.
    """

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_parameters(self):
        """The parameters by their names, in the order of assignment: "weight", "conv1.bias", "layers.0.weight".

        They are the leaves among the attributes of this module and of its modules, also in lists, tuples and dicts. A
        leaf with requires_grad False, such as a running mean, is among them: it is saved, but not trained.
        """
        return dict(_leaves(self, "", set()))

    def parameters(self):
        return list(self.named_parameters().values())

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def __repr__(self):
        text = "".join(f"\n{name}: {getattr(part, 'shape', part)}" for name, part in vars(self).items())
        return type(self).__name__ + "(" + text.replace("\n", "\n  ") + "\n)"  # also the lines of a module in this one

    def save(self, path):
        """Write the parameters to an npz file of exactly this name. If it raises an OSError, the file is as before."""
        if os.path.exists(path):
            if not os.path.isfile(path):
                raise OSError(f"{path} is not a regular file")
            open(path, "r+b").close()  # raises if it is write-protected, which os.replace ignores
        temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **{name: p.data for name, p in self.named_parameters().items()})
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)

    def load(self, path):
        """Read the parameters from a file that `save` wrote, keep the dtype of each, and return self.

        Raises OSError if it cannot be read, ValueError if it is damaged or of another network; then none has changed.
        """
        parameters = self.named_parameters()
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    if archive.zip.testzip():  # np.load does not look at all checksums
                        raise ValueError("a checksum is wrong")
                    arrays = {name: np.asarray(_as_data(archive[name])) for name in archive.files}
            except Exception as error:  # zipfile, zlib and NumPy raise a dozen different ones
                raise ValueError(f"{path} is damaged, or not a file of weights") from error
        for name in sorted(parameters.keys() | arrays.keys()):
            shapes = [weights[name].shape if name in weights else "missing" for weights in (arrays, parameters)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{path} is of another network: {name} is {shapes[0]} there and {shapes[1]} here")
        for name, p in parameters.items():
            p.data = arrays[name].astype(p.dtype)
        return self


def _leaves(part, name, visited):
    """Yield (name, leaf) once for each leaf in part, which is a leaf itself, or a Module, list, tuple or dict."""
    if id(part) in visited:
        return
    visited.add(id(part))
    if isinstance(part, Value):
        if part.is_leaf:
            yield name, part
    elif isinstance(part, (Module, list, tuple, dict)):
        parts = vars(part) if isinstance(part, Module) else part
        for key, inner in parts.items() if isinstance(parts, dict) else enumerate(parts):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key), visited)


def _uniform(shape, fan_in):
    """A new parameter between -1/sqrt(fan_in) and 1/sqrt(fan_in), where fan_in is the number of inputs of one output.

    An output is the sum of fan_in products (and a bias), with weights of the variance 1 / (3 fan_in). So its variance
    is a third of the inputs' mean square, however many inputs there are, and wide layers do not saturate.
    """
    return Value(np.random.uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), shape))


class LinearLayer(Module):
    """x @ weight + bias: x (..., input_num) to (..., output_num).

    weight is (input_num, output_num), bias (output_num,).
    """

    def __init__(self, input_num, output_num):
        n, m = _checked_int("input_num", input_num, 1), _checked_int("output_num", output_num, 1)
        self.weight, self.bias = _uniform((n, m), fan_in=n), _uniform(m, fan_in=n)

    def forward(self, x):
        x = as_value(x)
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(map(str, self.weight.shape))})"


class Neuron(LinearLayer):
    """One neuron, tanh(x @ weight + bias): x (..., input_num) to (...); weight (input_num,), bias ()."""

    def __init__(self, input_num):
        n = _checked_int("input_num", input_num, 1)
        self.weight, self.bias = _uniform(n, fan_in=n), _uniform((), fan_in=n)

    def forward(self, x):
        return super().forward(x).tanh()


class MLP(Module):
    """Linear layers with the output sizes layer_num and tanh between them: x (N, input_num) to (N, layer_num[-1]).

    One sample (input_num,) is N = 1."""

    def __init__(self, input_num, layer_num):
        sizes = [input_num, *layer_num]
        self.layers = [LinearLayer(n, m) for n, m in zip(sizes, sizes[1:])]

    def forward(self, x):
        x = as_value(x)
        if x.ndim > 2:
            raise ValueError(f"MLP takes x (N, input_num) or (input_num,), got shape {x.shape}")
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).tanh()
        return last(x).reshape(-1, last.weight.shape[1])  # (N, layer_num[-1])


class Conv2dLayer(Module):
    """conv2d with its own kernels: x (N, in_channel, H, W) to (N, out_channel, oh, ow).

    weight is (out_channel, in_channel, kernel_size, kernel_size), bias (out_channel,) or None.
    """

    def __init__(self, in_channel, out_channel, kernel_size, bias=True, stride=1, padding=0):
        c, o = _checked_int("in_channel", in_channel, 1), _checked_int("out_channel", out_channel, 1)
        k = _checked_int("kernel_size", kernel_size, 1)
        if type(bias) is not bool:  # in PyTorch, the fourth argument is the stride
            raise TypeError(f"bias must be True or False, got {bias!r}")
        self.stride, self.padding = _checked_int("stride", stride, 1), _checked_int("padding", padding, 0)
        self.weight = _uniform((o, c, k, k), fan_in=c * k * k)
        self.bias = _uniform(o, fan_in=c * k * k) if bias else None

    def forward(self, x):
        x = as_value(x)
        bias = None if self.bias is None else self.bias.astype(x.dtype)
        return conv2d(x, self.weight.astype(x.dtype), bias, self.stride, self.padding)

    def __repr__(self):
        o, c, k, _ = self.weight.shape
        return f"Conv2dLayer({c}, {o}, {k}, bias={self.bias is not None}, stride={self.stride}, padding={self.padding})"


# ---- Optimizer ------------------------------------------------------------------------------------------------------


class Optimizer:
    """Stochastic gradient descent: parameter -= lr * gradient. Frozen parameters are left as they are.

    Raises ValueError if there are no parameters, if one occurs twice, or if one is not a leaf.
    """

    def __init__(self, parameters):
        self.parameters = list(parameters)
        leaves = {p for p in self.parameters if p.is_leaf}
        if not 0 < len(leaves) == len(self.parameters):
            raise ValueError("parameters must be different leaves (Values that you created), at least one")

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def update(self, lr):
        """One step of gradient descent with the learning rate lr, a finite number that is not negative."""
        lr = _checked_float("lr", lr)
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must be finite and at least 0, got {lr}")
        for p in self.parameters:
            if p.requires_grad:
                p.data = p.data - lr * p.grad  # a new array: graphs may hold the old one


# ---- Drawing --------------------------------------------------------------------------------------------------------


def draw_graph(value):
    """The graph that computed value, as Graphviz DOT text: `dot -Tsvg` makes it a picture.

    Each Value is a box with its label, operation and shape, and if it is small (nine elements) its data and gradient.
    """
    names = {node: f"n{i}" for i, node in enumerate(topological_order(value))}
    lines = ["digraph {", "  rankdir=LR", "  node [shape=record]"]
    for node in names:
        fields = [str(node.label), node._op if node.requires_grad else "constant"]
        if node.shape:
            fields.append(f"shape {node.shape}")
        if np.size(node.data) <= 9:
            for name in ("data", "grad") if node.requires_grad else ("data",):
                fields.append(f"{name} {np.array2string(np.asarray(getattr(node, name)), precision=4, separator=', ')}")
        text = " | ".join(field.translate(_ESCAPED) for field in fields if field)
        lines.append(f'  {names[node]} [label="{text}"]')
        lines += [f"  {names[operand]} -> {names[node]}" for operand in node._prev]
    return "\n".join(lines + ["}"]) + "\n"


_ESCAPED = str.maketrans({c: "\\" + c for c in '\\"{}|<>'} | {"\n": "\\n", "&": "&amp;"})  # they mean something in DOT


# ---- Checks ---------------------------------------------------------------------------------------------------------


def _checked_int(name, value, minimum):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):  # a bool is an Integral, too
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def _checked_float(name, value):
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    return float(value)


# ---- Memory ---------------------------------------------------------------------------------------------------------

# glibc's malloc returns large arrays to the operating system, and fetching them again page by page doubles the time of
# a training step. So it may keep up to 256 MiB, in blocks of up to 32 MiB (man mallopt). Other systems have no mallopt.
with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
