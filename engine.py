"""Micrograd with NumPy arrays: reverse-mode automatic differentiation in one file.

A `Value` holds a number or an array and remembers which operation made it, from which operands. Every operation has
the same rhythm: make the operand a Value, compute with NumPy, define the closure `_backward`, which turns the gradient
of the result into the gradients of the operands, and return a new Value. `backward_all` calls those closures from the
last Value to the first, which is the chain rule. Everything else is built on these operations:

    Value        constructor, primitives (+ - * / ** @ tanh relu exp log sum reshape), composed operators, backward
    graph        topological_order, unbroadcast, no_grad
    functions    stack, conv2d, max_pooling, cross_entropy
    layers       Neuron, LinearLayer, MLP, Conv2dLayer
    optimizer    Optimizer
    drawing      draw_graph
    checks       what may be data, an operand, an integer, an axis
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Union

import numpy as np

# glibc's malloc hands large arrays back to the kernel when they are freed, and the next ones are faulted in page by
# page: a training step of the CNN would take 1.3 (batch 16) to 2.3 times as long (batch 256). So malloc is told to keep
# up to 256 MiB for this process, in blocks of up to 32 MiB (man mallopt). Other systems have no mallopt.
with contextlib.suppress(AttributeError, OSError, TypeError):
    _mallopt = ctypes.CDLL(None).mallopt
    _mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
    _mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD

Operand = Union["Value", np.ndarray, float]  # wherever a Value can be given: numbers and arrays are constants


class Value:
    """A number or an array of real numbers, and how it was computed.

    data           a float or a floating ndarray of any shape. Integers and booleans become float64. float32 stays
                   float32 and float64 stays float64; where two meet, NumPy's rules decide.
    grad           d(root)/d(this value), of data's shape and dtype; zeros before the first `backward_all()`.
    requires_grad  False for a constant, and for what was computed from constants or under `no_grad`.
    label          a name, for `draw_graph`.

    An operation of your own passes its operands as `_children`, its name as `_op`, and as `_backward` a function that
    is called with the gradient of the result and calls `operand.add_grad` with the gradient of each operand.

    Raises TypeError for data that are no real numbers, ValueError for ragged lists and ints too large for a float.
    """

    __slots__ = ("data", "label", "requires_grad", "_grad", "_pending", "_prev", "_op", "_backward", "__weakref__")

    # Makes `array * value` call Value.__rmul__, and `np.exp(value)` a TypeError. Without it NumPy would take the Value
    # for some object and build an array of objects.
    __array_ufunc__ = None

    def __init__(
        self,
        data: Operand,
        _children: tuple[Value, ...] = (),
        _op: str = "",
        _backward: Callable | None = None,
        label: str = "",
    ):
        requires_grad = not _children
        try:
            for child in _children:
                if child.requires_grad and _recording:
                    requires_grad = True
        except (AttributeError, TypeError):
            raise TypeError("_children must be a tuple of Values") from None
        if type(data) is not float:
            data = _as_data(data, _children)
        if not requires_grad:  # let go of the operands, and of the arrays that the closure holds
            _children, _backward = (), None
        self.data = data
        self.label = label
        self.requires_grad = requires_grad
        self._grad = self._pending = None  # made when they are needed
        self._prev = _children
        self._op = _op
        self._backward = _backward

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data; () for a number."""
        return () if type(self.data) is float else self.data.shape

    @property
    def grad(self) -> np.ndarray | float:
        """The gradient, of data's shape and dtype. What is assigned is copied, and broadcast to data's shape.

        Raises ValueError if it does not broadcast, TypeError if it is no real number or array.
        """
        if self._grad is None:
            self._grad = 0.0 if type(self.data) is float else np.zeros_like(self.data)
        return self._grad

    @grad.setter
    def grad(self, grad: np.ndarray | float):
        grad = _as_data(grad, name="grad")
        try:
            grad = np.broadcast_to(grad, self.shape)
        except ValueError:
            raise ValueError(f"grad must have data's shape {self.shape}, got {np.shape(grad)}") from None
        self._grad = float(grad) if type(self.data) is float else np.array(grad, self.data.dtype)

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"

    def __array__(self, *args, **kwargs):
        raise TypeError("a Value does not turn into an array, its gradient would be lost: use .data, or stack()")

    # ---- Primitives: the result, and how its gradient becomes the gradient of each operand. -------------------------
    # as_value makes a constant of a number or an array. A constant ignores its gradient, and where that gradient costs
    # something it is not even computed. add_grad undoes what broadcasting did to an operand, for all operations.

    def __add__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)

        def _backward(grad):  # d(a + b) = da + db
            self.add_grad(grad)
            other.add_grad(grad)

        return Value(self.data + other.data, (self, other), "+", _backward)

    def __sub__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)

        def _backward(grad):  # d(a - b) = da - db
            self.add_grad(grad)
            if other.requires_grad:
                other.add_grad(-grad)

        return Value(self.data - other.data, (self, other), "-", _backward)

    def __mul__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)
        a, b = self.data, other.data

        def _backward(grad):  # d(a b) = b da + a db
            if self.requires_grad:
                self.add_grad(grad * b)
            if other.requires_grad:
                other.add_grad(grad * a)

        return Value(a * b, (self, other), "*", _backward)

    def __truediv__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)
        b = other.data
        out = np.true_divide(self.data, b)  # by 0 this is inf or nan, for Python's numbers too

        def _backward(grad):  # d(a / b) = da / b - (a / b) db / b
            grad = np.true_divide(grad, b)
            self.add_grad(grad)
            if other.requires_grad:
                other.add_grad(-grad * out)

        return Value(out, (self, other), "/", _backward)

    def __pow__(self, exponent: float) -> Value:
        """Elementwise power. Raises TypeError for an exponent that is no real number: a Value or an array."""
        n = _real("the exponent of **", exponent)
        x = np.asarray(self.data)  # NumPy's power: 0 ** -1 is inf, (-1) ** 0.5 is nan

        def _backward(grad):  # d(x^n) = n x^(n-1) dx; for n = 0 it is 0, also where x^-1 is infinite
            self.add_grad(grad * (n * x ** (n - 1)) if n else np.zeros_like(x))

        return Value(x**n, (self,), f"**{exponent}", _backward)

    def __matmul__(self, other: Operand) -> Value:
        """Matrix product, with every signature of NumPy's: (n?,k),(k,m?)->(n?,m?), leading axes broadcasting.

        Raises ValueError for a scalar operand, and for shapes that do not fit.
        """
        if type(other) is not Value:
            other = as_value(other, like=self)
        a, b = self.data, other.data
        try:
            out = np.matmul(a, b)
        except ValueError:
            raise ValueError(f"@ takes (..., m, n) @ (..., n, p), got shapes {self.shape} and {other.shape}") from None

        def _backward(grad):  # d(A B) = dA B + A dB; a vector is one row on the left, one column on the right
            A = a[None, :] if a.ndim == 1 else a  # (..., m, n)
            B = b[:, None] if b.ndim == 1 else b  # (..., n, p)
            grad = np.reshape(grad, out.shape[: out.ndim - (a.ndim > 1) - (b.ndim > 1)] + (A.shape[-2], B.shape[-1]))
            if self.requires_grad:
                self.add_grad(grad @ B.swapaxes(-1, -2))  # (..., m, n)
            if other.requires_grad:
                dB = A.swapaxes(-1, -2) @ grad  # (..., n, p)
                other.add_grad(dB[..., 0] if b.ndim == 1 else dB)

        return Value(out, (self, other), "@", _backward)

    def tanh(self) -> Value:
        """Elementwise hyperbolic tangent."""
        out = np.tanh(self.data)

        def _backward(grad):  # d tanh(x) = (1 - tanh(x)^2) dx
            self.add_grad(grad * (1 - out * out))

        return Value(out, (self,), "tanh", _backward)

    def relu(self) -> Value:
        """Elementwise max(x, 0); its derivative at 0 is 0."""
        x = self.data
        if type(x) is float:
            out = 0.0 if x <= 0 else x  # nan stays nan
        else:
            out = np.maximum(x, 0)

        def _backward(grad):  # dx where x > 0
            self.add_grad(grad * (out > 0))

        return Value(out, (self,), "relu", _backward)

    def exp(self) -> Value:
        """Elementwise exponential."""
        out = np.exp(self.data)

        def _backward(grad):  # d exp(x) = exp(x) dx
            self.add_grad(grad * out)

        return Value(out, (self,), "exp", _backward)

    def log(self, eps: float = 1e-12) -> Value:
        """Elementwise log(x + eps), finite at x = 0. Raises TypeError for an eps that is no real number."""
        shifted = self.data + _real("eps", eps)

        def _backward(grad):  # d log(x + eps) = dx / (x + eps)
            self.add_grad(np.true_divide(grad, shifted))

        return Value(np.log(shifted), (self,), "log", _backward)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Value:
        """The sum over all elements, or over the given axes, which keepdims leaves in place with length 1.

        Raises TypeError for axes that are no integers or a keepdims that is no boolean, ValueError for an axis that
        data do not have.
        """
        shape, keepdims = self.shape, _boolean("keepdims", keepdims)
        axes = _axes(axis, len(shape))

        def _backward(grad):  # each element counts once: its gradient is the sum's
            self.add_grad(np.broadcast_to(grad if keepdims else np.expand_dims(grad, axes), shape))

        return Value(np.sum(self.data, axis=axes, keepdims=keepdims), (self,), "sum", _backward)

    def reshape(self, *shape: int) -> Value:
        """The same elements in another shape, given as integers or as one tuple; one of them may be -1.

        Raises TypeError for sizes that are no integers, ValueError for a shape of another number of elements.
        """
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        shape = tuple(_integer("a size in reshape", n, -1) for n in shape)
        try:
            out = np.reshape(self.data, shape)
        except (ValueError, OverflowError):
            raise ValueError(f"cannot reshape {self.shape} to {shape}") from None

        def _backward(grad):  # the same elements, back in their places
            self.add_grad(np.reshape(grad, self.shape))

        return Value(out, (self,), "reshape", _backward)

    # ---- Composed: from the primitives, so that they need no gradient of their own. ---------------------------------

    def __neg__(self) -> Value:
        return self * -1.0

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Value:
        """The mean over all elements or over the given axes. Raises what `sum` raises."""
        count = math.prod(self.shape[i] for i in _axes(axis, len(self.shape)))
        return self.sum(axis, keepdims) / count

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Operand) -> Value:
        return as_value(other, like=self) - self

    def __rtruediv__(self, other: Operand) -> Value:
        return as_value(other, like=self) / self

    def __rmatmul__(self, other: Operand) -> Value:
        return as_value(other, like=self) @ self

    def __rpow__(self, other: Operand):
        raise TypeError("the exponent of ** must be a real number, got a Value")

    # ---- Backward ---------------------------------------------------------------------------------------------------

    def backward_all(self) -> None:
        """Compute d(self)/d(v) for every Value v that self was computed from.

        The gradients of leaves add up over several calls, until they are set to zero; those of the Values in between
        start afresh. They are assigned at the end: if anything is raised on the way, no gradient has changed.

        Raises ValueError if no graph was recorded, or if a `_backward` is missing or computes a gradient that does not
        fit.
        """
        if not self.requires_grad:
            raise ValueError("no graph leads to this Value: it was computed from constants only, or under no_grad()")
        order = topological_order(self)
        for node in order:
            node._pending = None  # what add_grad adds up
            if node._backward is None and node._prev:
                raise ValueError(f"a Value of shape {node.shape} was made with _children but without a _backward")
        self._pending = 1.0 if type(self.data) is float else np.ones_like(self.data)
        for node in reversed(order):  # each Value after all of its uses
            if node._prev and node._pending is not None:
                node._backward(node._pending)
        for node in order:
            grad, node._pending = node._pending, None
            if node._prev:
                node._grad = grad
            elif type(grad) is float:
                node._grad = grad if node._grad is None else node._grad + grad
            elif grad is not None:
                total = np.array(grad, node.data.dtype)  # a copy: a leaf's gradient is its own
                if node._grad is not None:
                    total += node._grad
                node._grad = total

    def add_grad(self, grad: np.ndarray | float) -> None:
        """Called by a `_backward`: add to the gradient that `backward_all` is collecting for this operand.

        Raises ValueError if the shape of grad is neither data's nor one that data broadcast to.
        """
        if not self.requires_grad:
            return
        if type(grad) is not float or type(self.data) is not float:
            grad = _like(grad, self.data)
        # Not +=: the array may be another Value's gradient as well.
        self._pending = grad if self._pending is None else self._pending + grad


# ---- Graph ----------------------------------------------------------------------------------------------------------


def topological_order(root: Value) -> list[Value]:
    """All Values that root was computed from, and root: each one after its operands.

    Why an order at all? In a = 1; b = a + a; c = b + b the gradient of b is complete only when both of its uses in c
    have been added up. Going from c to b and on to a for each use by itself would visit a four times, and a chain of n
    such additions 2^n times. Backwards in this order every Value is visited once, after all of its uses.

    The stack is a list, not Python's own, which a graph of a thousand operations in a row would overflow.

    Raises TypeError for a root that is no Value.
    """
    if not isinstance(root, Value):
        raise TypeError(f"a graph leads to a Value, got {type(root).__name__}")
    order, visited, stack = [], set(), [root]
    while stack:
        node = stack.pop()
        if node is None:  # then all operands of the Value below it are in order
            order.append(stack.pop())
        elif node not in visited:
            visited.add(node)
            stack += (node, None)
            stack += node._prev
    return order


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum grad over the axes along which NumPy's broadcasting repeated an operand of this shape.

    Broadcasting copies an element to several places, so its gradient is the sum of the gradients of these places.
    Raises ValueError if shape does not broadcast to grad's shape.
    """
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    if added >= 0:
        stretched = tuple(added + i for i, n in enumerate(shape) if n == 1)
        total = grad.sum(axis=tuple(range(added)) + stretched, keepdims=True)
        if total.shape[added:] == shape:
            return total.reshape(shape)
    raise ValueError(f"a gradient of shape {grad.shape} does not fit an operand of shape {shape}")


def _like(grad, data):
    """grad with the shape and dtype of data."""
    grad = np.asarray(grad)
    if type(data) is float:
        return float(unbroadcast(grad, ()))
    return unbroadcast(grad, data.shape).astype(data.dtype, copy=False)


_recording = True


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside `with no_grad():` no graph is recorded: results are constants, and keep no operand alive.

    It holds for the whole process: other threads should not record graphs meanwhile.
    """
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


# ---- Functions ------------------------------------------------------------------------------------------------------


def stack(values: Sequence[Operand], axis: int = 0) -> Value:
    """Join n values of one shape along a new axis of length n.

    Raises TypeError unless values is a list or tuple, ValueError if it is empty, if shapes differ or for a wrong axis.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"stack takes a list or tuple of Values, got {type(values).__name__}")
    values = tuple(as_value(v, "values") for v in values)
    shapes = [v.shape for v in values]
    if len(set(shapes)) != 1:
        raise ValueError(f"stack takes one or more Values of the same shape, got shapes {shapes}")
    (axis,) = _axes((axis,), len(shapes[0]) + 1)

    def _backward(grad):
        for value, part in zip(values, np.moveaxis(grad, axis, 0)):
            value.add_grad(part)

    return Value(np.stack([v.data for v in values], axis, dtype=_result_dtype(values)), values, "stack", _backward)


# conv2d and max_pooling compute in blocks of whole rows, which stay in the cache unless the rows are very long.
BLOCK_BYTES = 2 << 20
# With AVX-512, OpenBLAS does not rearrange matrices whose product takes no more multiplications than this. In larger
# ones, a step of the CNN, which has few channels, would take 1.1 (batch 16) to 1.45 times as long (batch 64).
SMALL_PRODUCT = 10**6


def conv2d(x: Operand, w: Operand, b: Operand | None = None, stride: int = 1, padding: int = 0) -> Value:
    """2D convolution (cross-correlation, as in every framework), as matrix products.

    x (N, C, H, W), w (O, C, kh, kw), b (O,) or None; the result is (N, O, oh, ow), where
    oh = (H + 2 padding - kh) // stride + 1 and ow likewise. Rows and columns that do not fill a window are dropped.

        out[n, o, Y, X] = b[o] + sum over c, i, j of w[o, c, i, j] * padded[n, c, Y * stride + i, X * stride + j]

    What kernel cell (c, i, j) sees while the kernel slides over the image is one row of a matrix, the columns
    ("im2col", Chellapilla et al. 2006), and the sum is w @ columns. The bias is one more cell, which always sees 1.
    The gradients of w and b are those of this product; the gradient of x is another product (`image_gradient`, below).

    Raises ValueError for shapes that do not fit, an empty w, a kernel larger than the padded image, a stride below 1 or
    a padding below 0; TypeError for a stride or padding that is no integer.
    """
    x, w, b = as_value(x, "x"), as_value(w, "w"), None if b is None else as_value(b, "b")
    if len(x.shape) != 4 or len(w.shape) != 4 or x.shape[1] != w.shape[1] or 0 in w.shape:
        raise ValueError(f"conv2d takes x (N, C, H, W), w (O, C, kh, kw) not empty, got shapes {x.shape} and {w.shape}")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"conv2d takes b (O,) = {w.shape[:1]}, got shape {b.shape}")
    (N, C, H, W), (O, _, kh, kw) = x.shape, w.shape
    s, p = _integer("stride", stride, 1), _integer("padding", padding, 0)
    oh, ow = _output_size("conv2d", x.shape, (kh, kw), s, p)
    s = min(s, max(H, W) + 2 * p)  # a longer stride gives the same, and at some length NumPy gives up
    children = (x, w) if b is None else (x, w, b)
    dtype = _result_dtype(children)
    K = C * kh * kw + 1  # the cells of a kernel, and its bias: to add and to sum it would cost a step 4 to 7 % more
    kernel = np.zeros((O, K), dtype)
    kernel[:, :-1] = w.data.reshape(O, -1)
    if b is not None:
        kernel[:, -1] = b.data

    # image[q] has the columns q, q + s, q + 2 s, ... of the padded x. What a kernel cell sees then lies side by side in
    # memory for every stride; in the usual order a stride of 2 takes 1.3 times as long with 8 images.
    def positions(first, length):
        """The padded positions first, first + s, ... along an axis of x: which pixels of x these are, and which of the
        positions are in x."""
        skipped = max(0, -(-(p - first) // s))
        pixels = range(first - p + skipped * s, length, s)
        return slice(pixels.start, length, s), slice(skipped, skipped + len(pixels))

    width = -(-(W + 2 * p) // s)  # of image[q]
    columns_of_x = [positions(q, W) for q in range(min(s, kw))]
    image = np.zeros((len(columns_of_x), C, H + 2 * p, width, N), dtype)
    for q, (in_x, inside) in enumerate(columns_of_x):
        image[q, :, p : p + H, inside] = x.data.transpose(1, 2, 3, 0)[:, :, in_x]
    windows = [_windows(image[q], (kh, len(range(q, kw, s))), (oh, ow), s) for q in range(min(s, kw))]

    size = SMALL_PRODUCT // (O * K)  # how many columns a block has
    if size < 2048:  # small products pay only if they are long
        size = BLOCK_BYTES // (K * dtype.itemsize)
    images = _slices(N or 1, max(64, size // ow))  # of 33 or more, if there are: copying less at a time is slow
    most = images[-1].stop - images[-1].start

    def blocks(rows, length):
        """Slices of so many rows of this length, and of the images: together at most size columns, or one row."""
        return [(ys, ns) for ys in _slices(rows, size // (length * most)) for ns in images]

    def columns(ys, ns):
        """What each kernel cell, and the bias, sees in these output rows of these images: (K, rows * ow * images)."""
        seen = [window[:, :, :, ys, :, ns] for window in windows]
        shape = seen[0].shape[3:]  # (rows, ow, images)
        matrix = np.empty((K, math.prod(shape)), dtype)
        for q, cells in enumerate(seen):
            matrix[:-1].reshape(C, kh, kw, *shape)[:, :, q::s] = cells
        matrix[-1] = 1
        return matrix

    out = np.empty((O, oh, ow, N), dtype)
    for ys, ns in blocks(oh, ow):
        block = out[:, ys, :, ns]
        if len(images) == 1:  # then the block is a matrix in memory, too: without a copy, up to 15 % faster
            np.matmul(kernel, columns(ys, ns), out=block.reshape(O, -1))
        else:
            block[...] = (kernel @ columns(ys, ns)).reshape(block.shape)

    def image_gradient(dout):
        """dx[c, Y, X] = sum over o, i, j of w[o, c, i, j] * dout[o, (Y + p - i) / s, (X + p - j) / s] if integers.

        The sum over i is part of the matrix product: the output rows of all i are stacked. The sum over j follows: the
        product of each kernel column is added to the pixels that this column saw. With neither, adding a product for
        each kernel cell, a convolution and its gradients take 1.2 to 1.4 times as long.
        """
        dx = np.zeros((C, H, W, N), dtype)
        # Kernel rows i, i + s, ... see the same rows of x: their outputs are stacked. For a kernel almost as large as x
        # these would be mostly zeros, and it goes row by row: 14 x 14 on 14 x 14 takes a seventh of the time.
        step = s if H <= 2 * s * oh else kh
        for i in range(min(step, kh)):
            part = kernel[:, :-1].reshape(O, C, kh, kw)[:, :, i::step]
            m = part.shape[2]
            part = part[:, :, ::-1].transpose(3, 1, 0, 2).reshape(kw * C, O * m)
            padded = dout
            if (m, width) != (1, ow):  # zeros for what a kernel row or column did not see; 1 x 1 has none: 14 % less
                padded = np.zeros((O, oh + 2 * (m - 1), width, N), dtype)
                padded[:, m - 1 : m - 1 + oh, :ow] = dout
            rows_in_x, rows_inside = positions(i, H)
            stacked = _windows(padded, (m, 1), (oh + m - 1, width))[:, :, 0, rows_inside]  # (O, m, rows, width, N)
            dx_rows = dx[:, rows_in_x]
            for ys, ns in blocks(stacked.shape[2], width):
                douts = stacked[:, :, ys, :, ns]
                products = (part @ douts.reshape(O * m, -1)).reshape(kw, -1)
                # Kernel column j saw what column j % s saw, j // s positions further. As rows end in so many zeros, all
                # of them are shifted as one.
                for j in range(s, kw):
                    shift = j // s * douts.shape[-1]
                    products[j % s, shift:] += products[j, :-shift]
                for q, (in_x, inside) in enumerate(columns_of_x):
                    pixels, product = dx_rows[:, ys, in_x, ns], products[q].reshape(C, *douts.shape[2:])[:, :, inside]
                    pixels[...] = product if step == s else pixels + product
        return dx.transpose(3, 0, 1, 2)

    def _backward(grad):
        grad = _batch_last(grad)  # (O, oh, ow, N)
        if any(v.requires_grad for v in children[1:]):
            dkernel = np.zeros((K, O), dtype)  # this way round the product takes half the time
            for ys, ns in blocks(oh, ow):
                dkernel += columns(ys, ns) @ grad[:, ys, :, ns].reshape(O, -1).T
            w.add_grad(dkernel[:-1].T.reshape(w.shape))
            if b is not None:
                b.add_grad(dkernel[-1])
        if x.requires_grad:
            x.add_grad(image_gradient(grad))

    return Value(out.transpose(3, 0, 1, 2), children, "conv2d", _backward)


def max_pooling(x: Operand, stride: int) -> Value:
    """The largest element of each stride x stride window: x (N, C, H, W) to (N, C, H // stride, W // stride).

    Rows and columns that do not fill a window are dropped. Of equal elements the first one in row-major order gets the
    gradient, so that its sum is kept (as in PyTorch and JAX). A nan makes its window nan, and the last cell gets the
    gradient.

    Raises ValueError unless x has four axes and is at least one window large, or for a stride below 1; TypeError for a
    stride that is no integer.
    """
    x, s = as_value(x, "x"), _integer("stride", stride, 1)
    if len(x.shape) != 4:
        raise ValueError(f"max_pooling takes x (N, C, H, W), got shape {x.shape}")
    oh, ow = _output_size("max_pooling", x.shape, (s, s), s, 0)

    image = _batch_last(x.data)
    blocks = _slices(oh, BLOCK_BYTES // (2 * image[:, :s].nbytes or 1))  # of output rows: 6 % of a step at batch 256

    def cells(array, ys):
        """The s * s cells of the windows in output rows ys, in row-major order: views of shape (C, rows, ow, N)."""
        return [array[:, ys.start * s + i : ys.stop * s : s, j : ow * s : s] for i in range(s) for j in range(s)]

    out = np.empty((image.shape[0], oh, ow, image.shape[3]), image.dtype)
    for ys in blocks:
        out[:, ys] = functools.reduce(np.maximum, cells(image, ys))

    def _backward(grad):
        grad, dimage = _batch_last(grad), np.empty_like(image)
        dimage[:, oh * s :] = dimage[:, :, ow * s :] = 0  # what fills no window
        for ys in blocks:
            rest = grad[:, ys].copy()  # what no cell has taken yet
            *firsts, last = zip(cells(image, ys), cells(dimage, ys))
            for cell, dcell in firsts:
                taken = rest * (cell == out[:, ys])
                dcell[...] = taken
                rest -= taken
            last[1][...] = rest
        x.add_grad(dimage.transpose(3, 0, 1, 2))

    return Value(out.transpose(3, 0, 1, 2), (x,), "max_pooling", _backward)


def _batch_last(x: np.ndarray) -> np.ndarray:
    """x (N, C, H, W) as (C, H, W, N), contiguous.

    NumPy then works on N numbers or more side by side: pooling takes half, im2col a third of the time that it takes in
    the usual order. conv2d and max_pooling leave their results in this order in memory, and elementwise operations
    keep it, so that the next one copies nothing here.
    """
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0))


def _windows(image, kernel, size, stride=1):
    """What each kernel cell sees of image (C, H, W, N): a view (C, kh, kw, oh, ow, N) whose element [c, i, j, y, x, n]
    is image[c, y * stride + i, x + j, n]. NumPy checks that it does not leave image's memory."""
    c, h, w, n = image.strides
    shape = (image.shape[0], *kernel, *size, image.shape[-1])
    return np.ndarray(shape, image.dtype, image, 0, (c, h, w, stride * h, w, n))


def _slices(n, longest):
    """0 ... n - 1 in slices of about equal length, as few as there can be of at most longest, if that is at least 1."""
    parts = -(-n // max(1, longest))
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def _output_size(name, shape, kernel, stride, padding):
    sizes = [(n + 2 * padding - k) // stride + 1 for n, k in zip(shape[2:], kernel)]
    if min(sizes) < 1:
        raise ValueError(f"{name}: a window of {kernel} is larger than x of shape {shape} with padding {padding}")
    return sizes


def cross_entropy(x: Operand, y: Sequence[int] | np.ndarray) -> Value:
    """The mean over the batch of -log softmax(x)[y]: logits x (N, classes), integer labels y (N,), result ().

    The largest logit is subtracted first, which leaves the softmax as it is and keeps exp from overflowing. The
    gradient is (softmax(x) - onehot(y)) / N.

    Raises ValueError for other shapes, an empty batch or labels outside 0 ... classes - 1; TypeError for labels that
    are no integers.
    """
    x = as_value(x, "x")
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"cross_entropy takes logits x (N, classes), not empty, got shape {x.shape}")
    (n, classes), y = x.shape, _as_labels(y)
    if y.shape != (n,):
        raise ValueError(f"cross_entropy takes one label for each of the {n} rows of x, got labels of shape {y.shape}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels must be in 0 ... {classes - 1}, got {y.min()} ... {y.max()}")
    shifted = x.data - x.data.max(axis=1, keepdims=True)  # (N, classes)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = np.arange(n), y

    def _backward(grad):
        dx = np.exp(log_softmax)
        dx[picked] -= 1
        x.add_grad(dx * (grad / n))

    return Value(log_softmax[picked].sum() / -n, (x,), "cross_entropy", _backward)


# ---- Layers ---------------------------------------------------------------------------------------------------------


class Layer:
    """What all layers share: a weight, a bias or None, and calling the layer is calling its forward.

    Parameters are float64, drawn uniformly from +-1/sqrt(fan_in) with np.random, so that np.random.seed reproduces
    them (fan_in, the number of inputs of one output: LeCun et al., "Efficient BackProp", 1998). A layer computes in the
    floating dtype of its input; the parameters and their gradients remain float64.
    """

    weight: Value
    bias: Value | None

    def __call__(self, x: Operand) -> Value:
        return self.forward(x)

    def parameters(self) -> list[Value]:
        """The Values to train."""
        return [p for p in (self.weight, self.bias) if p is not None]


def _uniform(fan_in, shape):
    return Value(np.asarray(np.random.uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), shape)))


def _cast(parameter, dtype):
    """The parameter in another dtype; its gradient comes back in its own."""
    if parameter is None or parameter.data.dtype == dtype:
        return parameter

    def _backward(grad):
        parameter.add_grad(grad)

    return Value(parameter.data.astype(dtype), (parameter,), "astype", _backward)


def _layer_input(layer, x, features):
    x = as_value(x, "x")
    if x.shape[-1:] != (features,):
        raise ValueError(f"{layer} takes x of shape (..., {features}), got {x.shape}")
    return x


class Neuron(Layer):
    """tanh(x @ weight + bias): x (..., input_num) to (...), with weight (input_num,) and bias ().

    Raises ValueError for an input_num below 1 or an x of another shape, TypeError for an input_num that is no integer.
    """

    def __init__(self, input_num: int):
        n = _integer("input_num", input_num, 1)
        self.weight, self.bias = _uniform(n, n), _uniform(n, ())

    def forward(self, x: Operand) -> Value:
        x = _layer_input(self, x, self.weight.shape[0])
        dtype = x.data.dtype
        return (x @ _cast(self.weight, dtype) + _cast(self.bias, dtype)).tanh()

    def __repr__(self) -> str:
        return f"Neuron({self.weight.shape[0]})"


class LinearLayer(Layer):
    """x @ weight + bias: x (..., input_num) to (..., output_num); weight (input_num, output_num), bias (output_num,).

    Raises ValueError for a size below 1 or an x of another shape, TypeError for a size that is no integer.
    """

    def __init__(self, input_num: int, output_num: int):
        n, m = _integer("input_num", input_num, 1), _integer("output_num", output_num, 1)
        self.weight, self.bias = _uniform(n, (n, m)), _uniform(n, m)

    def forward(self, x: Operand) -> Value:
        x = _layer_input(self, x, self.weight.shape[0])
        dtype = x.data.dtype
        return x @ _cast(self.weight, dtype) + _cast(self.bias, dtype)

    def __repr__(self) -> str:
        return "LinearLayer({}, {})".format(*self.weight.shape)


class MLP(Layer):
    """Linear layers with tanh between them: x (N, input_num) to (N, layer_num[-1]), or (input_num,) to N = 1 row.

    layer_num is the list of output sizes, one for each layer.

    Raises ValueError for an empty list, a size below 1 or an x of another shape, TypeError for sizes that are no
    integers.
    """

    def __init__(self, input_num: int, layer_num: Sequence[int]):
        if not isinstance(layer_num, (list, tuple)):
            raise TypeError(f"layer_num must be a list of sizes, got {type(layer_num).__name__}")
        if not layer_num:
            raise ValueError("layer_num must have one size for each layer, got none")
        sizes = [_integer("input_num", input_num, 1), *(_integer("a size in layer_num", n, 1) for n in layer_num)]
        self.layers = [LinearLayer(n, m) for n, m in zip(sizes, sizes[1:])]

    def forward(self, x: Operand) -> Value:
        x = as_value(x, "x")
        if len(x.shape) > 2:
            raise ValueError(f"MLP takes x (N, {self.layers[0].weight.shape[0]}) or one sample, got shape {x.shape}")
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).tanh()
        return last(x).reshape(-1, last.bias.shape[0])

    def parameters(self) -> list[Value]:
        """The Values to train."""
        return [p for layer in self.layers for p in layer.parameters()]

    def __repr__(self) -> str:
        return f"MLP({', '.join(map(repr, self.layers))})"


class Conv2dLayer(Layer):
    """conv2d with a weight (out_channel, in_channel, kernel_size, kernel_size) and a bias (out_channel,) or None:
    x (N, in_channel, H, W) to (N, out_channel, oh, ow).

    Raises what `conv2d` raises, ValueError for a size below 1, TypeError for a size that is no integer and for a bias
    that is no boolean.
    """

    def __init__(
        self, in_channel: int, out_channel: int, kernel_size: int, bias: bool = True, stride: int = 1, padding: int = 0
    ):
        c, o = _integer("in_channel", in_channel, 1), _integer("out_channel", out_channel, 1)
        k, bias = _integer("kernel_size", kernel_size, 1), _boolean("bias", bias)
        self.stride, self.padding = _integer("stride", stride, 1), _integer("padding", padding, 0)
        self.weight = _uniform(c * k * k, (o, c, k, k))
        self.bias = _uniform(c * k * k, o) if bias else None

    def forward(self, x: Operand) -> Value:
        x = as_value(x, "x")
        dtype = _result_dtype([x])
        return conv2d(x, _cast(self.weight, dtype), _cast(self.bias, dtype), self.stride, self.padding)

    def __repr__(self) -> str:
        o, c, k, _ = self.weight.shape
        return f"Conv2dLayer({c}, {o}, {k}, bias={self.bias is not None}, stride={self.stride}, padding={self.padding})"


# ---- Optimizer ------------------------------------------------------------------------------------------------------


class Optimizer:
    """Stochastic gradient descent: parameter -= lr * gradient.

    Raises TypeError unless parameters are Values, ValueError if there are none, for one that is given twice, and for
    one that is no leaf: the result of an operation is computed anew from its operands, so that an update is lost.
    """

    def __init__(self, parameters: Iterable[Value]):
        if not isinstance(parameters, Iterable):
            raise TypeError(f"parameters must be a list of Values, got {type(parameters).__name__}")
        self.parameters = list(parameters)
        for p in self.parameters:
            if not isinstance(p, Value):
                raise TypeError(f"parameters must be a list of Values, got a list with {type(p).__name__}")
            if p._prev or not p.requires_grad:
                what = f"the result of {p._op!r}" if p._op else "a constant"
                raise ValueError(f"parameters must be leaves that require a gradient, got {what}")
        if not self.parameters:
            raise ValueError("parameters must be a list of Values, got none")
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError("parameters must be different Values, got one twice, which would be updated twice")

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for p in self.parameters:
            p._grad = None

    def update(self, lr: float) -> None:
        """Take one step of gradient descent with the learning rate lr. Arrays that were handed in are not written to.

        Raises TypeError for an lr that is no real number, ValueError if it is negative, infinite or nan.
        """
        lr = _real("lr", lr)
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must be a finite number, at least 0, got {lr}")
        updated = [_like(p.data - lr * p.grad, p.data) for p in self.parameters]
        for p, data in zip(self.parameters, updated):
            p.data = data


# ---- Drawing --------------------------------------------------------------------------------------------------------


def draw_graph(value: Value) -> str:
    """The graph that computed value, as Graphviz DOT text: `dot -Tsvg` makes it a picture.

    Each Value is a box with its label, operation, shape, and, up to nine elements, its data and gradient; arrows lead
    from operands to results. The same graph gives the same text.

    Raises TypeError for anything but a Value, and for a label that is no str.
    """
    order = topological_order(value)
    name = {node: f"n{i}" for i, node in enumerate(order)}
    lines = ["digraph {", "  rankdir=LR", "  node [shape=record]"]
    for node in order:
        if not isinstance(node.label, str):
            raise TypeError(f"a label must be a str, got {type(node.label).__name__}")
        fields = [node.label, node._op if node.requires_grad else "constant"]
        if node.shape:
            fields.append(f"shape {node.shape}")
        if np.size(node.data) <= 9:
            fields.append(f"data {_short(node.data)}")
            if node.requires_grad:
                fields.append(f"grad {_short(node.grad)}")
        text = " | ".join(_escaped(f) for f in fields if f)
        lines.append(f'  {name[node]} [label="{{ {text} }}"]')
        lines += [f"  {name[operand]} -> {name[node]}" for operand in node._prev]
    return "\n".join(lines + ["}"]) + "\n"


def _short(data):
    return np.array2string(data, precision=4, separator=", ") if np.ndim(data) else f"{data:.4g}"


def _escaped(text):
    """Text inside a record's label, where DOT gives some characters a meaning."""
    return "".join("\\" + c if c in '\\"{}|<>' else c for c in text).replace("\n", "\\n")


# ---- Checks ---------------------------------------------------------------------------------------------------------


def as_value(x: Operand, name: str = "an operand", like: Value | None = None) -> Value:
    """x if it is a Value, else x as a constant: a Value that gets no gradient.

    Integer and boolean arrays become floats; of which kind, NumPy's rules for them and the dtype of `like` decide.
    Raises TypeError and ValueError as Value does, with this name for x.
    """
    if isinstance(x, Value):
        return x
    if like is not None and isinstance(x, np.ndarray) and x.dtype.kind in "biu":
        x = x.astype(np.result_type(x.dtype, _result_dtype([like])))
    constant = Value(x if type(x) is float else _as_data(x, name=name))
    constant.requires_grad = False
    return constant


def _as_data(data, operands=(), name="data"):
    """What a Value holds: a float, a NumPy float or an array of floats. operands: what it was computed from, if any."""
    if type(data) is np.ndarray and data.dtype.kind == "f":
        return data
    if type(data) is np.float64 and operands:  # NumPy's answer to Python's numbers too
        return float(data) if all(type(v.data) is float for v in operands) else _result_dtype(operands).type(data)
    if isinstance(data, np.floating):
        return data
    if isinstance(data, (int, float, np.integer, np.bool_)):
        try:
            return float(data)
        except OverflowError:
            raise ValueError(f"{name} must fit a float64, got an int of {data.bit_length()} bits") from None
    if isinstance(data, Value):
        raise TypeError(f"{name} must be a number or an array, got a Value")
    try:
        array = np.asarray(data)
    except ValueError:
        raise ValueError(f"{name} must be a number or an array, got a ragged {type(data).__name__}") from None
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    if array.dtype.kind != "f" or isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{name} must be real numbers, got {type(data).__name__} of dtype {array.dtype}")
    return array


def _result_dtype(operands):
    """The dtype of a result, by NumPy's rules. Python's numbers don't count: in NumPy 1.26 they sometimes do."""
    return np.result_type(*{v.data.dtype for v in operands if type(v.data) is not float} or {np.float64})


def _as_labels(y):
    try:
        labels = np.asarray(y.data if isinstance(y, Value) else y)
    except ValueError:
        raise ValueError(f"labels must have the shape (N,), got a ragged {type(y).__name__}") from None
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {type(y).__name__} of dtype {labels.dtype}")
    return labels


def _integer(name, value, minimum):
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def _boolean(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _real(name, value):
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float64, got an int of {value.bit_length()} bits") from None


def _axes(axis, ndim):
    """axis, an integer, a tuple of them or None for all, as a tuple of integers from 0 to ndim - 1."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    axes = [_integer("axis", a, -ndim) for a in axes]
    if any(a >= ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(f"axis must name different axes out of {ndim}, got {axis}")
    return tuple(a % ndim for a in axes)
