"""Micrograd with NumPy arrays: reverse-mode automatic differentiation in one file.

A `Value` holds a number or an array and remembers which operation made it, from which operands. Every primitive has
the same pattern: make the operand a Value, compute with NumPy, define the closure `_backward`, which turns the gradient
of the result into the gradients of the operands, and return a new Value. `backward_all` calls these closures from the
last Value to the first, which is the chain rule.

A closure gets the gradient of its result as an argument. If it held the result instead, to read the gradient there, the
two would hold each other, and the arrays of a training step would stay until the garbage collector runs. It holds the
operands, and the arrays that it needs, as they were in the forward pass: what is assigned to `data` later does not
change the gradients.

    Value        constructor, primitives (+ - * / ** @ tanh relu exp log sum ...), composed operations, backward, data
                 and shape, numbers and sequences
    operands     as_value: what they become, and what a Value holds
    graph        topological_order, unbroadcast, no_grad
    functions    stack, conv2d, max_pooling, cross_entropy
    layers       Layer, LinearLayer, Neuron, MLP, Conv2dLayer
    optimizer    Optimizer
    drawing      draw_graph
    the rest     files of weights, checks of arguments, memory: nothing about gradients
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import io
import math
import numbers
import os
import reprlib
import shutil
import threading
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, Union

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

__all__ = [
    "Value", "Operand", "as_value", "topological_order", "unbroadcast", "no_grad", "stack", "conv2d", "max_pooling",
    "cross_entropy", "Layer", "LinearLayer", "Neuron", "MLP", "Conv2dLayer", "Optimizer", "draw_graph",
]  # fmt: skip

Operand = Union["Value", ArrayLike]  # what an operation takes: a Value, or a number or array, which is then a constant
_CLOSED = False  # Value._pending where add_grad would raise. (Not an object(): deepcopy would make another one.)


def _missing_backward(grad):  # until a _backward is assigned, as in micrograd: but here it takes the gradient
    raise ValueError("a Value was made with _children but without a _backward")


class Value:
    """A number or an array of real numbers, and how it was computed.

    A leaf is made by you. A result is made by an operation, and remembers its operands. A constant needs no
    gradient: it is a leaf, or a result, which then keeps no operands.

    data           a Python float, or a floating NumPy array or scalar.
                   Numbers become Python floats and stay so: with arrays of one element, scalar graphs would take four
                   times as long.
                   Arrays of float32 and float64 stay, those of float16 become float32, of integers and booleans
                   float64. Where two dtypes meet, NumPy's rules decide.
                   Arrays that stay are not copied: changing their elements, or those of a result, between the forward
                   and the backward pass can make gradients wrong. Assigning another array of the same shape to `data`
                   cannot.
    grad           the derivative, with respect to this Value, of what `backward_all` was called on, or of its sum; of
                   data's type, shape and dtype. Gradients of leaves add up over several calls, those of results start
                   afresh. It is zero before the first call, and becomes zero when data of another type, shape or dtype
                   are assigned.
    requires_grad  False for a constant: what `as_value` made of a number or an array, what was computed from constants
                   only, or under `no_grad`. Set it to False to freeze a Value.
    label          a name, for `draw_graph`.
    shape, dtype, ndim   as NumPy's.

    `<`, `<=`, `>` and `>=` compare data. `==` does not: it is true for the same Value only, as Values are the nodes of
    graphs and the keys of dicts.

    An operation of your own passes its operands as `_children`, its name as `_op`, and as `_backward` a function that
    is called with the gradient of the result and calls `operand.add_grad` with the gradient of each operand. It must
    not write to the array that it gets, nor later to those that it handed on: other Values may hold them, too.

    Raises TypeError for data that are no real numbers and for a `_backward` that is no function, ValueError for a
    `_backward` without `_children`.
    """

    __slots__ = (  # a graph of numbers makes many Values, and they take less time and memory without a dict
        "_data", "_grad", "_shared_grad", "_pending", "_prev", "_op", "_backward", "requires_grad", "label",
        "__weakref__",
    )  # fmt: skip

    # Makes `array * value` call Value.__rmul__, and `np.exp(value)` a TypeError. Without it NumPy would take the Value
    # for some object and build an array of objects.
    __array_ufunc__ = None
    __contains__ = None  # `x in value` would always be False: iterating makes new Values

    def __init__(self, data: ArrayLike, _children: Iterable[Value] = (), _op="", _backward=None, label: str = ""):
        _children = tuple(_children)
        if _backward is None:
            _backward = _missing_backward if _children else None
        elif not callable(_backward):
            raise TypeError(f"_backward must be a function of the gradient, got {type(_backward).__name__}")
        elif not _children:
            raise ValueError("a _backward needs _children, to which it hands their gradients")
        requires_grad = not _children  # a leaf needs a gradient; a result does if an operand does (any() is slower)
        for child in _children:
            if child.requires_grad:
                requires_grad = True
        if _no_grad_threads and _children and threading.get_ident() in _no_grad_threads:  # under no_grad
            requires_grad = False
        if type(data) is not float:  # a float needs no call
            data = _as_data(data)
            if _children and type(data) is np.float64 and all(type(v._data) is float for v in _children):
                data = float(data)  # NumPy's functions make np.float64 of Python floats
        if not requires_grad:  # let go of the operands, and of the arrays that the closure holds
            _children, _backward = (), None
        self._data = data
        # The gradient is collected in _pending, then kept in _grad or _shared_grad, where the property `grad` finds it.
        self._pending = _CLOSED  # in backward_all the sum of what add_grad got, or None for zero
        self._grad = None  # an array of this Value's own, or None
        self._shared_grad = None  # a result's, until it is read: others may have it, as + hands one to both operands
        self._prev = _children  # empty for a leaf, and for a result that is a constant
        self._op = _op
        self._backward = _backward
        self.requires_grad = requires_grad
        self.label = label

    # ---- Primitives: the result, and how its gradient becomes the gradient of each operand. -------------------------
    # as_value makes a constant of a number or an array, with a dtype that suits `like`, the other operand. add_grad
    # undoes what broadcasting did to an operand, for all operations, and ignores constants; only matrix products and
    # conv2d ask requires_grad first, to save their work. In graphs of numbers each call counts: so as_value is not
    # called for a Value, and `_data` is read instead of `data`.

    def __add__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)

        def _backward(grad):  # d(a + b) = da + db
            self.add_grad(grad)
            other.add_grad(grad)

        return Value(self._data + other._data, (self, other), "+", _backward)

    def __sub__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)

        def _backward(grad):  # d(a - b) = da - db
            self.add_grad(grad)
            other.add_grad(-grad)

        return Value(self._data - other._data, (self, other), "-", _backward)

    def __mul__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)
        a, b = self._data, other._data  # kept: data may be another by the time of _backward

        def _backward(grad):  # d(a b) = b da + a db
            self.add_grad(grad * b)
            other.add_grad(grad * a)

        return Value(a * b, (self, other), "*", _backward)

    def __truediv__(self, other: Operand) -> Value:
        if type(other) is not Value:
            other = as_value(other, like=self)
        b = other._data
        out = np.true_divide(self._data, b)  # by 0 this is inf or nan, for Python's numbers too

        def _backward(grad):  # d(a / b) = da / b - (a / b) db / b
            da = np.true_divide(grad, b)
            self.add_grad(da)
            other.add_grad(-da * out)

        return Value(out, (self, other), "/", _backward)

    def __pow__(self, exponent: float) -> Value:
        """Elementwise power. Raises TypeError for an exponent that is not a real number, such as a Value."""
        n = _real("the exponent of **", exponent)
        x = np.asarray(self._data)  # for numbers, too, NumPy's power: 0 ** -1 is inf, (-1) ** 0.5 is nan

        def _backward(grad):  # d(x^n) = n x^(n-1) dx; for n = 0 it is 0, also where x^-1 is infinite
            dx = grad * (n * x ** (n - 1)) if n else np.zeros_like(x)
            self.add_grad(dx)

        return Value(x**n, (self,), f"**{exponent}", _backward)

    def __matmul__(self, other: Operand) -> Value:
        """Matrix product, as NumPy's: (..., m, n) @ (..., n, p) is (..., m, p), and leading axes broadcast. A
        vector (n,) is one row on the left, one column on the right, and the result does not have that axis.

        Raises ValueError for a number as operand, and for shapes that do not fit.
        """
        if type(other) is not Value:
            other = as_value(other, like=self)
        a, b = self._data, other._data
        try:
            out = np.matmul(a, b)
        except ValueError:
            raise ValueError(f"@ takes (..., m, n) @ (..., n, p), got shapes {self.shape} and {other.shape}") from None

        def _backward(grad):  # d(A B) = dA B + A dB: A gets grad B^T, and B gets A^T grad
            # (A_ij is in out_ik for every k, times B_jk: so it gets the sum over k of grad_ik B_jk)
            A, B = a, b
            if b.ndim == 1:  # one column
                B, grad = b[:, None], np.expand_dims(grad, -1)
            if a.ndim == 1:  # one row
                A, grad = a[None, :], np.expand_dims(grad, -2)
            if self.requires_grad:
                self.add_grad(grad @ B.swapaxes(-1, -2))  # (..., m, n); add_grad sums leading axes, for a vector m, too
            if other.requires_grad:
                dB = A.swapaxes(-1, -2) @ grad  # (..., n, p); p is a last axis, so for a vector it is dropped here
                other.add_grad(dB[..., 0] if b.ndim == 1 else dB)

        return Value(out, (self, other), "@", _backward)

    def tanh(self) -> Value:
        """Elementwise hyperbolic tangent."""
        out = np.tanh(self._data)

        def _backward(grad):  # d tanh(x) = (1 - tanh(x)^2) dx
            self.add_grad(grad * (1 - out * out))

        return Value(out, (self,), "tanh", _backward)

    def relu(self) -> Value:
        """Elementwise max(x, 0); its derivative at 0 is 0. An infinite gradient is nan where x <= 0 (inf * 0)."""
        x = self._data
        out = max(x, 0.0) if type(x) is float else np.maximum(x, 0)  # max(nan, 0.0) is nan; max(0.0, nan) is not

        def _backward(grad):  # dx where x > 0, which is where out > 0
            self.add_grad(grad * (out > 0))

        return Value(out, (self,), "relu", _backward)

    def exp(self) -> Value:
        """Elementwise exponential."""
        out = np.exp(self._data)

        def _backward(grad):  # d exp(x) = exp(x) dx
            self.add_grad(grad * out)

        return Value(out, (self,), "exp", _backward)

    def log(self, eps: float = 1e-12) -> Value:
        """Elementwise log(x + eps), finite at x = 0."""
        shifted = self._data + _real("eps", eps)

        def _backward(grad):  # d log(x + eps) = dx / (x + eps)
            self.add_grad(np.true_divide(grad, shifted))  # inf or nan for 0, as in /

        return Value(np.log(shifted), (self,), "log", _backward)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Value:
        """The sum over all elements, or over the given axes, which keepdims leaves in place with length 1.

        Raises TypeError for an axis that is not an integer or a keepdims that is not a boolean, ValueError for a wrong
        axis.
        """
        shape, keepdims = self.shape, _boolean("keepdims", keepdims)
        axes = _axes(axis, len(shape))

        def _backward(grad):  # each element counts once: its gradient is the sum's
            self.add_grad(np.broadcast_to(grad if keepdims else np.expand_dims(grad, axes), shape))

        return Value(np.sum(self._data, axis=axes, keepdims=keepdims), (self,), "sum", _backward)

    def reshape(self, *shape: int) -> Value:
        """The same elements in another shape, given as integers or as one tuple or list; one of them may be -1.

        Raises TypeError for sizes that are not integers, ValueError for a shape of another number of elements.
        """
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        shape = tuple(_integer("a size in reshape", n, minimum=-1) for n in shape)
        before = self.shape
        try:
            out = np.reshape(self._data, shape)
        except ValueError:
            raise ValueError(f"cannot reshape {before} to {shape}") from None

        def _backward(grad):  # the same elements, back in their places
            self.add_grad(np.reshape(grad, before))

        return Value(out, (self,), "reshape", _backward)

    def transpose(self, *axes: int) -> Value:
        """The axes in another order, given as integers or as one tuple or list; without any, in reverse.

        Raises TypeError for axes that are not integers, ValueError unless each axis is there once.
        """
        if not axes:
            axes = range(self.ndim)[::-1]
        elif len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = axes[0]
        axes = _axes(tuple(axes), self.ndim)
        if len(axes) != self.ndim:
            raise ValueError(f"transpose takes each axis of {self.shape} once, got {axes}")

        def _backward(grad):  # back into the old order: argsort inverts a permutation
            self.add_grad(np.transpose(grad, np.argsort(axes)))

        return Value(np.transpose(self._data, axes), (self,), "transpose", _backward)

    def __getitem__(self, index) -> Value:
        """What NumPy's indexing picks: integers, slices, None, ..., arrays of integers or booleans.

        Raises what NumPy raises: IndexError for an index that is out of bounds, or of another kind.
        """
        x = np.asarray(self._data)
        out = x[index]
        index = copy.deepcopy(index)  # an array in it may be changed before the backward pass

        def _backward(grad):  # back to where they came from; add.at, unlike +=, adds up what was picked twice
            dx = np.zeros_like(x)
            np.add.at(dx, index, grad)
            self.add_grad(dx)

        return Value(out, (self,), "[]", _backward)

    def astype(self, dtype: DTypeLike) -> Value:
        """The same numbers in another floating dtype; self, if it is data's. The gradient comes back in data's dtype.

        Raises TypeError for a dtype that a Value does not hold, such as int or float16.
        """
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        if dtype.kind != "f" or dtype.itemsize < 4:
            raise TypeError(f"astype takes float32, float64 or a longer float, got {dtype}")

        def _backward(grad):  # add_grad casts
            self.add_grad(grad)

        return Value(np.asarray(self._data).astype(dtype), (self,), "astype", _backward)

    # ---- Composed: from the primitives, so that they need no _backward of their own. --------------------------------

    def __neg__(self) -> Value:
        return self * -1.0

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Value:
        """The mean over all elements or over the given axes. Raises what `sum` raises."""
        count = math.prod(self.shape[i] for i in _axes(axis, self.ndim))
        return self.sum(axis, keepdims) / count

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Value:
        """The largest element, of all or along the given axes. The first of equal ones gets the gradient; nan counts as
        largest. Raises what `sum` raises, and ValueError where there is no element."""
        keepdims = _boolean("keepdims", keepdims)
        axes = sorted(_axes(axis, self.ndim))  # so that the first of equal elements is the first in row-major order
        if not axes:  # of a number, or with axis=(), each element is the largest
            return self
        kept = [i for i in range(self.ndim) if i not in axes]
        count, length = (math.prod(self.shape[i] for i in group) for group in (kept, axes))
        if length == 0:
            raise ValueError(f"max takes at least one element, got shape {self.shape} and axis {axis}")
        rows = self.transpose(*kept, *axes).reshape(count, length)  # a row for each element of the result
        largest = rows[np.arange(count), rows.data.argmax(1)]
        kept_shape = [1 if i in axes else n for i, n in enumerate(self.shape)]
        return largest.reshape(kept_shape if keepdims else [self.shape[i] for i in kept])

    T = property(transpose)
    __radd__ = __add__  # other + self is self + other
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
        """Compute d(self)/d(v) for every Value v that self was computed from; if self is an array, of its sum.

        The gradients of leaves add up over several calls, until they are set to zero; those of results start afresh.
        They are assigned at the end: if anything is raised on the way, no gradient has changed. (The pass itself is the
        loop in the middle. What is around it is for this, and for passes inside of a `_backward`.)

        Raises ValueError if no graph was recorded, or if a `_backward` is missing or computes a gradient that does not
        fit.
        """
        if not self.requires_grad:
            raise ValueError("no graph leads to this Value: it was computed from constants only, or under no_grad()")
        order = topological_order(self)[::-1]  # each Value after all of its uses
        before = [node._pending for node in order]  # to put back: this pass may be inside a _backward
        grads = []
        try:
            for node in order:
                node._pending = None  # zero: add_grad adds to it
            self._pending = 1.0 if type(self._data) is float else np.ones_like(self._data)  # d(self)/d(self)
            for node in order:
                grad = node._pending  # complete, or None for zero
                node._pending = _CLOSED  # a late add_grad raises
                if node._prev and grad is not None:
                    node._backward(grad)
                grads.append(grad)
        finally:
            for node, pending in zip(order, before):
                node._pending = pending
        # First the sums, which may raise (under np.errstate), then the assignments.
        totals = [grad if node._prev else node._leaf_total(grad) for node, grad in zip(order, grads)]
        for node, total in zip(order, totals):
            if node._prev:
                node._grad, node._shared_grad = None, total  # starts afresh
            else:
                node._grad = total  # added to earlier ones

    backward = backward_all  # micrograd's and PyTorch's name

    def _leaf_total(self, grad):
        """The gradient of earlier passes and of this one, as a leaf's own array."""
        if grad is None:  # nothing was collected, as for every constant
            return self._grad
        total = grad if self._grad is None else self._grad + grad
        return total if type(self._data) is float else np.array(total, self.dtype)  # a copy: others may have grad

    def add_grad(self, grad: np.ndarray | float) -> None:
        """Called by a `_backward`: add to the gradient that `backward_all` is collecting for this operand.

        grad has data's shape, or one that data was broadcast to. A constant ignores it. Raises ValueError for another
        shape, and where grad would be lost: outside of `backward_all`, or for a Value that is no operand in this graph
        or whose turn is over.
        """
        if not self.requires_grad:
            return
        if type(self._data) is not float:
            grad = unbroadcast(np.asarray(grad), self._data.shape).astype(self._data.dtype, copy=False)
        elif type(grad) is not float:
            grad = float(unbroadcast(np.asarray(grad), ()))
        if self._pending is None:
            self._pending = grad
        elif self._pending is _CLOSED:
            raise ValueError("add_grad is for the operands (_children) of the _backward that calls it, in backward_all")
        else:  # not +=: others may have got this array, too
            self._pending = self._pending + grad

    @property
    def grad(self) -> np.ndarray | float:
        """The gradient, of data's shape and dtype. What is assigned is copied, and broadcast to data's shape.

        Raises ValueError for an assignment in a `_backward`, which calls add_grad instead.
        """
        if self._grad is None:
            shared = self._shared_grad  # None for zero
            if type(self._data) is float:
                self._grad = 0.0 if shared is None else shared
            else:
                self._grad = np.zeros_like(self._data) if shared is None else np.array(shared, self.dtype)
        return self._grad

    @grad.setter
    def grad(self, grad: ArrayLike) -> None:
        if self._pending is not _CLOSED:
            raise ValueError("during backward_all, a _backward calls add_grad instead of assigning grad")
        grad = _as_data(grad, "grad")
        try:
            grad = np.broadcast_to(grad, self.shape)
        except ValueError:
            raise ValueError(f"grad must have data's shape {self.shape}, got {np.shape(grad)}") from None
        self._grad = float(grad) if type(self._data) is float else np.array(grad, self.dtype)

    # ---- Data, shape and text ---------------------------------------------------------------------------------------

    @property
    def data(self) -> np.ndarray | float:
        return self._data

    @data.setter
    def data(self, data: ArrayLike) -> None:
        before = type(self._data), self.shape, self.dtype
        self._data = _as_data(data)
        if (type(self._data), self.shape, self.dtype) != before:
            self._grad = self._shared_grad = None  # they belong to the data before

    @property
    def shape(self) -> tuple[int, ...]:
        return () if type(self._data) is float else self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(float) if type(self._data) is float else self._data.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        text = np.array2string(self._data, separator=", ", prefix="Value(") if self.ndim else str(self._data)
        if type(self._data) is not float:
            text += f", shape={self.shape}, dtype={self.dtype}"
        if self.label:
            text += f", label={self.label!r}"
        if self._grad is not None or self._shared_grad is not None:
            text += f", grad={np.array2string(self.grad, separator=', ') if self.ndim else self.grad}"
        return f"Value({text})"

    # ---- Where Python expects a number or a sequence ----------------------------------------------------------------

    def item(self) -> float:
        """The only element, as a Python float; also float(v) and f"{v:.4f}". Raises TypeError for none or more."""
        if np.size(self.data) != 1:
            raise TypeError(f"a Value of shape {self.shape} is not one number: use .data")
        return float(np.ravel(self.data)[0])

    __float__ = item

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __lt__(self, other: Operand) -> np.ndarray | np.bool_:
        return np.less(self.data, as_value(other).data)

    def __le__(self, other: Operand) -> np.ndarray | np.bool_:
        return np.less_equal(self.data, as_value(other).data)

    def __gt__(self, other: Operand) -> np.ndarray | np.bool_:
        return np.greater(self.data, as_value(other).data)

    def __ge__(self, other: Operand) -> np.ndarray | np.bool_:
        return np.greater_equal(self.data, as_value(other).data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __len__(self) -> int:
        return len(np.asarray(self.data))

    def __iter__(self) -> Iterator[Value]:
        return (self[i] for i in range(len(self)))

    def __array__(self, *args, **kwargs):
        raise TypeError("a Value does not turn into an array, its gradient would be lost: use .data, or stack()")

    def __getstate__(self):
        """For copy and pickle. A copied graph would share its closures, which add to the original's leaves."""
        if self._prev:
            raise TypeError(f"the result of {self._op!r} cannot be copied or pickled with its graph: copy its .data")
        state = {name: getattr(self, name) for name in self.__slots__ if name != "__weakref__"}
        state["_pending"] = _CLOSED  # the copy is in no pass, even if this Value is
        state["_grad"] = copy.copy(self._grad)  # also in a shallow copy, each Value's gradient is its own array
        return None, state  # as pickle wants it: the state of a __dict__, and of the slots


# ---- Operands -------------------------------------------------------------------------------------------------------


def as_value(x: Operand, name: str = "an operand", like: Value | None = None) -> Value:
    """x if it is a Value, else x as a constant: a Value that gets no gradient.

    Integer and boolean arrays become float64; with `like`, the other operand, they take NumPy's common dtype of both:
    int8 beside float32 becomes float32. Raises TypeError as Value does, with this name for x.
    """
    if isinstance(x, Value):
        return x
    if like is not None and isinstance(x, np.ndarray) and x.dtype.kind in "biu":
        x = x.astype(np.result_type(x.dtype, like.dtype), copy=False)
    constant = Value(x if type(x) is float else _as_data(x, name))  # checked here, so that an error names the argument
    constant.requires_grad = False
    return constant


def _as_data(data, name="data"):
    """What a Value holds: a Python float, or a NumPy array or scalar, of float32 or longer."""
    if type(data) is float or isinstance(data, (int, np.integer, np.bool_)):
        return float(data)
    if isinstance(data, Value):
        raise TypeError(f"{name} must be a number or an array, got a Value")
    x = data if isinstance(data, np.floating) else np.asarray(data)
    if x.dtype.kind not in "biuf" or isinstance(data, np.ma.MaskedArray):  # asarray has dropped the mask
        raise TypeError(f"{name} must be real numbers, got {type(data).__name__} of dtype {x.dtype}")
    if x.dtype.kind == "f":
        return x if x.dtype.itemsize > 2 else x.astype(np.float32)
    return x.astype(np.float64)  # booleans, integers and unsigned integers


# ---- Graph ----------------------------------------------------------------------------------------------------------


def topological_order(root: Value) -> list[Value]:
    """All Values that root was computed from, constants too, and root: each one after its operands.

    Why an order at all? In a = Value(1.0); b = a + a; c = b + b the gradient of b is complete only when both of its
    uses in c have been added up. Going from c to b and on to a for each use by itself would visit a four times, and the
    first Value of a chain of n such additions 2^n times. Backwards in this order every Value is visited once, after all
    of its uses.

    The list to_visit replaces recursion, which a graph of a thousand operations in a row would overflow. A None in it
    means: the Value before it has all its operands in `order`.
    """
    if not isinstance(root, Value):
        raise TypeError(f"a graph leads to a Value, got {type(root).__name__}")
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


_no_grad_threads: list[int] = []  # the threads in no_grad(). Value() tests whether it is empty first, which is faster


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside `with no_grad():` this thread records no graph: results are constants, and keep no operand alive."""
    thread = threading.get_ident()
    _no_grad_threads.append(thread)
    try:
        yield
    finally:
        _no_grad_threads.remove(thread)


# ---- Functions ------------------------------------------------------------------------------------------------------


def stack(values: Sequence[Operand], axis: int = 0) -> Value:
    """Join n values of one shape along a new axis of length n.

    Raises TypeError unless values is a list or tuple, ValueError if it is empty, if shapes differ or for a wrong axis.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"stack takes a list or tuple of Values, got {type(values).__name__}")
    values = tuple(as_value(v, name="values") for v in values)
    shapes = [v.shape for v in values]
    if len(set(shapes)) != 1:
        raise ValueError(f"stack takes one or more Values of the same shape, got shapes {shapes}")
    (axis,) = _axes((axis,), len(shapes[0]) + 1)  # in a tuple, so that None and tuples are refused
    arrays = [v.data for v in values]

    def _backward(grad):  # each value gets its part
        for value, part in zip(values, np.moveaxis(grad, axis, 0)):
            value.add_grad(part)

    out = np.stack(arrays, axis, dtype=np.result_type(*arrays))  # a Python float takes the arrays' dtype, as in +
    return Value(out, values, "stack", _backward)


def _output_size(name, shape, kernel, stride, padding):
    """How often the kernel fits into each axis of the padded image."""
    sizes = [(n + 2 * padding - k) // stride + 1 for n, k in zip(shape[2:], kernel)]
    if min(sizes) < 1:
        raise ValueError(f"{name}: a window of {kernel} is larger than x of shape {shape} with padding {padding}")
    return sizes


# conv2d: x (N, C, H, W) and w (O, C, kh, kw) to (N, O, oh, ow), where s is the stride.
#
# Each row of the result is one matrix product. First, each image row is copied kw times: copy j of a row is what kernel
# column j sees while the kernel slides along it. Written one below the other, the copies of kh successive rows are a
# matrix of kh * kw lines: all that the kernel sees for one row of the result. (Matrices have lines here, images rows.)
# For an image of 3 x 3 pixels and the kernel a b / c d:
#
#     1 2 3     row 0, seen by column 0:  1 2     [a b c d]  1 2  = result's row 0     [a b c d]  4 5  = result's row 1
#     4 5 6            seen by column 1:  2 3                2 3                                  5 6
#     7 8 9     row 1, seen by column 0:  4 5                4 5                                  7 8
#                      seen by column 1:  5 6                5 6                                  8 9
#               row 2, seen by column 0:  7 8
#                      seen by column 1:  8 9
#
# With C channels, each of these lines becomes C lines, one for each; with N images, each number becomes N numbers side
# by side. With a stride, a copy has only every s-th pixel, and each matrix begins s image rows below the one before. In
# formulas, where Y and X count the rows and columns of the result, i and j those of the kernel:
#
#     result[Y] = K @ seen[Y]                                                        (O, ow * N)
#     K[o, (i * kw + j) * C + c] = w[o, c, i, j]                                     (O, kh * kw * C)
#     seen[Y][(i * kw + j) * C + c, X * N + n] = padded[n, c, Y * s + i, X * s + j]  (kh * kw * C, ow * N)
#
# _row_copies makes the lines, _windows finds each seen[Y] among them, _products multiplies. Images are arrays with the
# axes (row, channel, column, image), contiguous in memory: _windows needs that, for the rest it only saves time.


def _row_copies(image, kw, ow, s):
    """image (h, C, W, N) to (h, kw, C, ow, N): what each kernel column j sees of a row as the kernel slides along it,
    the ow pixels j, j + s, ..."""
    h, C, _, N = image.shape
    copies = np.empty((h, kw, C, ow, N), image.dtype)
    # This is copies[:, j] = image[:, :, j : j + s * ow : s] for all j. But NumPy is slow with every s-th pixel. So the
    # pixels first, first + s, ... are put side by side: copy j begins with number j // s of them.
    for first in range(min(s, kw)):
        pixels = np.ascontiguousarray(image[:, :, first::s])
        for j in range(first, kw, s):
            copies[:, j] = pixels[:, :, j // s : j // s + ow]
    return copies


def _add_row_copies(copies, W, s):
    """The way back, for gradients: (h, kw, C, ow, N) to an image (h, C, W, N), each pixel the sum of its copies."""
    h, kw, C, ow, N = copies.shape
    image = np.zeros((h, C, W, N), copies.dtype)
    for first in range(min(s, kw)):
        pixels = image if s == 1 else np.zeros_like(image[:, :, first::s])
        for j in range(first, kw, s):
            pixels[:, :, j // s : j // s + ow] += copies[:, j]
        image[:, :, first::s] = pixels
    return image


def _windows(rows, k, s=1):
    """rows (h, m, length), m lines for each of h image rows, to ((h - k) // s + 1, k * m, length): what a kernel of k
    rows sees as it moves down by s rows.

    Window Y is rows[Y * s : Y * s + k], all lines one below the other. rows must be contiguous (np.ndarray refuses
    others): these lines follow one another in memory already. So the windows are a view, overlap, and cost nothing.
    """
    h, m, length = rows.shape
    row_step, line_step, step = rows.strides  # how many bytes lie between one and the next
    shape, steps = ((h - k) // s + 1, k * m, length), (s * row_step, line_step, step)
    return np.ndarray(shape, rows.dtype, buffer=rows, strides=steps)


def _column_parts(length, per_column):
    """Slices of all `length` columns of a matrix, for a product in which a column takes per_column multiplications.

    BLAS was measured fastest at products of up to 10**6 multiplications. If such a product has fewer than 1000 columns,
    it was fastest with all of them at once.
    """
    longest = 10**6 // per_column
    parts = math.ceil(length / longest) if longest >= 1000 else 1
    return [slice(length * i // parts, length * (i + 1) // parts) for i in range(parts)]


def _products(matrix, windows, out=None):
    """matrix (p, q) @ windows (count, q, length) to (count, p, length): one product for each window."""
    if out is None:
        out = np.empty((len(windows), len(matrix), windows.shape[2]), matrix.dtype)
    for part in _column_parts(windows.shape[2], matrix.size):
        np.matmul(matrix, windows[:, :, part], out=out[:, :, part])
    return out


def _gradient_of_copies(grad, kernel, h, s):
    """The gradient of the copies of all h padded image rows (h, kw * C, length), from that of conv2d's result, grad
    (oh, O, length), where length is ow * N.

    Let copies[r] be the kw * C lines of image row r, and K_i (O, kw * C) the part of K for kernel row i. Row Y of the
    result is the sum over i of K_i @ copies[Y * s + i]. So, as for @, copies[Y * s + i] gets K_i.T @ grad[Y]. For a
    kernel of 2 rows, a result of 2 rows, and s = 1:

        copies[0] gets  K_1.T @ 0       + K_0.T @ grad[0]
        copies[1] gets  K_1.T @ grad[0] + K_0.T @ grad[1]
        copies[2] gets  K_1.T @ grad[1] + K_0.T @ 0

    [K_1.T K_0.T] slides down over the rows 0, grad[0], grad[1], 0. So this is a convolution again, and computed as one:
    of grad with kh - 1 rows of zeros above and below, by the kernel with O and C exchanged and its rows reversed. (Not
    its columns: they are in the copies, which _add_row_copies adds up.)

    With a stride, kernel row i sees image row r only if r - i is a multiple of s. For s = 2 and kh = 3, even rows are
    seen by kernel rows 0 and 2, odd ones by 1. So there is one such convolution, without stride, for each first < s: of
    the same grad, by kernel rows first, first + s, ..., for image rows first, first + s, ...
    """
    (oh, O, length), (_, C, kh, kw) = grad.shape, kernel.shape
    rows = np.zeros((kh - 1 + oh + kh - 1, O, length), grad.dtype)
    rows[kh - 1 : kh - 1 + oh] = grad
    dcopies = np.zeros((h, kw * C, length), grad.dtype)
    for first in range(min(s, kh)):
        kernel_rows = kernel[:, :, first::s]  # (O, C, k, kw)
        k = kernel_rows.shape[2]
        matrix = kernel_rows[:, :, ::-1].transpose(3, 1, 2, 0).reshape(kw * C, k * O)  # [K_1.T K_0.T] for 2 rows
        spare = kh - k  # k kernel rows need only k - 1 rows of zeros
        windows = _windows(rows[spare : len(rows) - spare], k)
        _products(matrix, windows, out=dcopies[first::s][: len(windows)])  # what no kernel row sees stays 0
    return dcopies


def conv2d(x: Operand, w: Operand, b: Operand | None = None, stride: int = 1, padding: int = 0) -> Value:
    """2D convolution (cross-correlation, as in every framework), as matrix products.

    x (N, C, H, W), w (O, C, kh, kw), b (O,) or None; the result is (N, O, oh, ow), where
    oh = (H + 2 padding - kh) // stride + 1 and ow likewise. Rows and columns that do not fill a window are dropped.

        out[n, o, Y, X] = b[o] + sum over c, i, j of w[o, c, i, j] * padded[n, c, Y * stride + i, X * stride + j]

    `loop_conv2d` in tests/gradcheck.py is this definition in seven loops, with its gradients.

    Each row of the result is one matrix product: the kernel times what it sees. For an image of 3 x 3 pixels and the
    kernel a b / c d:

        1 2 3     [a b c d]  1 2  = result's row 0     [a b c d]  4 5  = result's row 1
        4 5 6                2 3                                  5 6
        7 8 9                4 5                                  7 8
                             5 6                                  8 9

    1 2 is what a sees of the image while the kernel slides along for row 0, 2 3 is what b sees. In general, line
    (i * kw + j) * C + c of such a matrix is what kernel cell (i, j) sees of channel c: more above `_row_copies`. The
    gradient of these lines is a convolution, too: see `_gradient_of_copies`. `_add_row_copies` sums it up for x.

    The zeros of the padding, and those that _gradient_of_copies puts around the result's gradient, are multiplied, too:
    with an infinite weight their products are nan.

    Raises ValueError for shapes that do not fit, an empty w, a kernel larger than the padded image, or a stride or
    padding that is too small, TypeError for one that is not an integer.
    """
    x, w = as_value(x, "x"), as_value(w, "w")
    b = None if b is None else as_value(b, "b")
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1] or 0 in w.shape:
        raise ValueError(f"conv2d takes x (N, C, H, W), w (O, C, kh, kw) not empty, got shapes {x.shape} and {w.shape}")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"conv2d takes b (O,) = {w.shape[:1]}, got shape {b.shape}")
    (N, C, H, W), (O, _, kh, kw) = x.shape, w.shape
    s, p = _integer("stride", stride, 1), _integer("padding", padding, 0)
    oh, ow = _output_size("conv2d", x.shape, (kh, kw), s, p)
    children = (x, w) if b is None else (x, w, b)
    kernel = w.data.astype(np.result_type(*(v.data for v in children)), copy=False)  # in the dtype of all

    # x may come in any memory order: that changes only the time. The result comes in padded's, (row, channel, column,
    # image), so that the next layer need not reorder it.
    padded = np.zeros((H + 2 * p, C, W + 2 * p, N), kernel.dtype)
    padded[p : p + H, :, p : p + W] = x.data.transpose(2, 1, 3, 0)
    # copies stays for the backward pass: it takes the memory of kw images, and saves the time to make it again.
    copies = _row_copies(padded, kw, ow, s)
    seen = _windows(copies.reshape(H + 2 * p, kw * C, ow * N), kh, s)  # (oh, kh * kw * C, ow * N)
    K = kernel.transpose(0, 2, 3, 1).reshape(O, kh * kw * C)
    out = _products(K, seen)  # (oh, O, ow * N)
    if b is not None:
        out += b.data[:, None]

    def _backward(grad):  # out[Y] = K @ seen[Y] + b. So, as for @, dK is the sum over Y of grad[Y] @ seen[Y].T
        grad = np.ascontiguousarray(grad.transpose(2, 1, 3, 0)).reshape(oh, O, ow * N)
        if b is not None and b.requires_grad:
            b.add_grad((grad @ np.ones(ow * N, grad.dtype)).sum(0))  # grad.sum((0, 2)) in half the time
        if w.requires_grad:
            dK_T = np.zeros((kh * kw * C, O), grad.dtype)  # which BLAS computes faster than dK
            for part in _column_parts(ow * N, kernel.size):
                dK_T += (seen[:, :, part] @ grad[:, :, part].swapaxes(1, 2)).sum(0)
            w.add_grad(dK_T.reshape(kh, kw, C, O).transpose(3, 2, 0, 1))
        if x.requires_grad:  # first the gradient of the copies, then that of the pixels that were copied
            dcopies = _gradient_of_copies(grad, kernel, H + 2 * p, s)
            dpadded = _add_row_copies(dcopies.reshape(copies.shape), W + 2 * p, s)
            x.add_grad(dpadded[p : p + H, :, p : p + W].transpose(3, 1, 0, 2))

    return Value(out.reshape(oh, O, ow, N).transpose(3, 1, 0, 2), children, "conv2d", _backward)


def max_pooling(x: Operand, stride: int) -> Value:
    """The largest element of each stride x stride window: x (N, C, H, W) to (N, C, H // stride, W // stride).

    Rows and columns that do not fill a window are dropped. Of equal elements the first one in row-major order gets the
    gradient (as in PyTorch and JAX). A nan makes its window nan, and the last cell gets the gradient. An infinite
    gradient may make the gradient of its whole window nan (inf * 0).

    Raises ValueError unless x has four axes and is at least one window large, TypeError if stride is not an integer.
    """
    x, s = as_value(x, "x"), _integer("stride", stride, 1)
    if x.ndim != 4:
        raise ValueError(f"max_pooling takes x (N, C, H, W), got shape {x.shape}")
    oh, ow = _output_size("max_pooling", x.shape, (s, s), s, 0)

    image = np.ascontiguousarray(x.data.transpose(2, 1, 3, 0))  # (H, C, W, N), as in conv2d
    rows = functools.reduce(np.maximum, [image[i : oh * s : s] for i in range(s)])  # (oh, C, W, N)
    out = functools.reduce(np.maximum, [rows[:, :, j : ow * s : s] for j in range(s)])  # (oh, C, ow, N)

    def _backward(grad):  # in each window, the first cell that equals the maximum takes the gradient
        rest = np.array(grad.transpose(2, 1, 3, 0), order="C")  # what no cell has taken yet; a copy, to write to
        dimage = np.empty_like(image)
        dimage[oh * s :] = 0  # what fills no window
        dimage[:, :, ow * s :] = 0
        *cells, last = [np.s_[i : oh * s : s, :, j : ow * s : s] for i in range(s) for j in range(s)]
        for cell in cells:
            taken = rest * (image[cell] == out)
            dimage[cell] = taken
            rest -= taken
        dimage[last] = rest  # which is all of it in a window with nan, as nan equals nothing
        x.add_grad(dimage.transpose(3, 1, 0, 2))

    return Value(out.transpose(3, 1, 0, 2), (x,), "max_pooling", _backward)


def cross_entropy(x: Operand, y: Sequence[int] | np.ndarray) -> Value:
    """The mean over the batch of -log softmax(x)[y]: logits x (N, classes), integer labels y (N,), result ().

    The largest logit is subtracted first, which leaves the softmax as it is and keeps exp from overflowing.
    -log softmax(x)[y] is log(sum(exp(x))) - x[y], and the derivative of log(sum(exp(x))) is softmax(x). So, with 1 / N
    from the mean, the gradient is (softmax(x) - onehot(y)) / N.

    Raises ValueError for other shapes, an empty batch or labels outside 0 ... classes - 1; TypeError for labels that
    are not integers.
    """
    x = as_value(x, "x")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"cross_entropy takes logits x (N, classes), not empty, got shape {x.shape}")
    n, classes = x.shape
    labels = np.array(y.data if isinstance(y, Value) else y)  # a copy: they may be changed before the backward pass
    if labels.dtype.kind not in "iu" or isinstance(y, np.ma.MaskedArray):
        raise TypeError(f"labels must be integers, got {type(y).__name__} of dtype {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"cross_entropy takes one label for each of the {n} rows of x, got shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        got = f"{labels.min()} ... {labels.max()}"
        raise ValueError(f"labels must be in 0 ... {classes - 1}, the columns of x, got {got}")
    shifted = x.data - x.data.max(axis=1, keepdims=True)  # (N, classes)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = np.arange(n), labels

    def _backward(grad):  # (softmax(x) - onehot(y)) / N
        dx = np.exp(log_softmax)
        dx[picked] -= 1
        x.add_grad(dx * (grad / n))

    loss = 0 - log_softmax[picked].sum() / n  # 0 - x, because -x would make -0.0 of 0.0
    return Value(loss, (x,), "cross_entropy", _backward)


# ---- Layers ---------------------------------------------------------------------------------------------------------


def _is_leaf(value):
    """True for a Value made by hand, also a frozen one, or one with an _op. (A result that is a constant has no _prev,
    either: but it has an _op, and needs no gradient.)"""
    return not value._prev and (value.requires_grad or not value._op)


def _members(thing, path=""):
    """Yield (path, member) for each Value and each Layer in thing: a layer, list, tuple or dict. It looks into lists,
    tuples and dicts in it, but not into layers."""
    parts = vars(thing) if isinstance(thing, Layer) else thing
    items = parts.items() if isinstance(parts, dict) else enumerate(parts)
    for key, part in items:
        name = f"{path}.{key}" if path else str(key)
        if isinstance(part, (Value, Layer)):
            yield name, part
        elif isinstance(part, (list, tuple, dict)):
            yield from _members(part, name)


def _uniform(shape, fan_in):
    """A parameter of a new layer; fan_in is the number of inputs of one output. The range is PyTorch's."""
    return Value(np.random.uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), shape))


LayerType = TypeVar("LayerType", bound="Layer")  # load returns what it was called on


class Layer:
    """The base of every layer and network: it finds its parameters, and calling it is calling its forward.

    A layer of your own makes its Values and its layers in __init__ and defines forward(x):

        class Scale(Layer):
            def __init__(self, n):
                self.gain = Value(np.ones(n))

            def forward(self, x):
                return x * self.gain.astype(x.dtype)

    The engine's layers draw float64 parameters uniformly between -1/sqrt(fan_in) and 1/sqrt(fan_in), as PyTorch does;
    fan_in is the number of inputs of one output. np.random.seed reproduces them. The layers compute in the floating
    dtype of their input; the parameters and their gradients keep their own.
    """

    def __call__(self, x: Operand) -> Value:
        out = self.forward(x)
        if out is None:
            raise TypeError(f"{type(self).__name__}.forward returned None: is its return missing?")
        return out

    def forward(self, x: Operand) -> Value:
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, x)")

    def named_parameters(self) -> dict[str, Value]:
        """The Values to train by their names, in the order of assignment: "weight", "conv1.bias", "layers.0.weight".

        They are the leaves among the attributes of this layer and of its layers, also in lists, tuples and dicts. What
        is found twice counts once. A leaf whose requires_grad was set to False is not in here, but is saved and loaded;
        results of operations are neither. Raises ValueError for two of one name, as in a dict with the keys 0 and "0".
        """
        return {name: leaf for name, leaf in self._leaves().items() if leaf.requires_grad}

    def _leaves(self):
        """The parameters by their names, frozen ones too."""
        found, visited = {}, {id(self)}

        def visit(layer, path):
            for name, part in _members(layer, path):
                if id(part) in visited:
                    continue
                visited.add(id(part))
                if isinstance(part, Layer):
                    visit(part, name)
                elif _is_leaf(part):
                    if name in found:
                        raise ValueError(f"two parameters of {type(self).__name__} are named {name}")
                    found[name] = part

        visit(self, "")
        return found

    def parameters(self) -> list[Value]:
        """The Values to train, in the order of `named_parameters`."""
        return list(self.named_parameters().values())

    @reprlib.recursive_repr("...")
    def __repr__(self) -> str:
        members = ""
        for name, part in _members(self):
            members += f"\n{name}: {part if isinstance(part, Layer) else part.shape}"
            if isinstance(part, Value) and not _is_leaf(part):
                members += ", no parameter"
        members = members.replace("\n", "\n  ")  # indents the lines of a member, too
        return f"{type(self).__name__}({members}\n)" if members else f"{type(self).__name__}()"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters, frozen ones too, by their names to an npz file of exactly this name.

        There is never half a file: the old one is there until the new one is complete. Raises ValueError if the file
        cannot be written, or if a parameter is not finite.
        """
        weights = {name: p.data for name, p in self._leaves().items()}
        wrong = [f"{name} is not finite" for name, data in weights.items() if not np.isfinite(data).all()]
        if wrong:
            raise ValueError(f"cannot save weights to {path}: {', '.join(wrong)}")
        _write_arrays(path, weights)

    @np.errstate(over="ignore")  # float64 beyond the range of a float32 parameter becomes inf, and is refused below
    def load(self: LayerType, path: str | os.PathLike[str]) -> LayerType:
        """Take the parameters from a file that `save` wrote, keep the dtype of each, and return self.

        Raises ValueError for a file that is missing, damaged or of another network: all parameters are then unchanged.
        """
        arrays, parameters = _read_arrays(path), self._leaves()
        wrong = [f"{name} is missing" for name in parameters if name not in arrays]
        for name, array in arrays.items():
            if name not in parameters:
                wrong.append(f"{name} is not in this network")
            elif array.dtype.kind != "f" or array.shape != parameters[name].shape:
                wrong.append(f"{name} is {array.dtype} {array.shape} instead of real numbers {parameters[name].shape}")
            elif not np.isfinite(array.astype(parameters[name].dtype)).all():
                wrong.append(f"{name} is not finite")
        if wrong:
            raise ValueError(f"cannot load weights from {path}: {', '.join(sorted(wrong))}")
        for name, p in parameters.items():
            # order="C" for speed: np.load keeps the file's order, which may be column by column
            p.data = float(arrays[name]) if type(p.data) is float else arrays[name].astype(p.dtype, order="C")
        return self


class LinearLayer(Layer):
    """x @ weight + bias: x (..., input_num) to (..., output_num); weight (input_num, output_num), bias (output_num,).

    Raises ValueError for a size below 1 or an x of another shape, TypeError for a size that is not an integer.
    """

    def __init__(self, input_num: int, output_num: int):
        n, m = _integer("input_num", input_num, 1), _integer("output_num", output_num, 1)
        self.weight, self.bias = _uniform((n, m), fan_in=n), _uniform(m, fan_in=n)

    def forward(self, x: Operand) -> Value:
        x = as_value(x, "x")
        if x.shape[-1:] != self.weight.shape[:1]:
            raise ValueError(f"{self} takes x of shape (..., input_num), got {x.shape}")
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.weight.shape))})"


class Neuron(LinearLayer):
    """tanh(x @ weight + bias): x (..., input_num) to (...), with weight (input_num,) and bias ().

    Raises what LinearLayer raises.
    """

    def __init__(self, input_num: int):
        n = _integer("input_num", input_num, 1)
        self.weight, self.bias = _uniform(n, fan_in=n), _uniform((), fan_in=n)

    def forward(self, x: Operand) -> Value:
        return super().forward(x).tanh()


class MLP(Layer):
    """Linear layers with tanh between them: x (N, input_num) to (N, layer_num[-1]); one sample (input_num,) is N = 1.

    layer_num is the list of output sizes, one for each layer.

    Raises ValueError for an empty list, a size below 1 or an x of another shape, TypeError for sizes that are
    not integers.
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
        if x.ndim > 2:
            raise ValueError(f"MLP takes x (N, {self.layers[0].weight.shape[0]}) or one sample, got shape {x.shape}")
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).tanh()
        out = last(x)
        return out.reshape(-1, out.shape[-1])  # always (N, outputs): one sample is a batch of one


class Conv2dLayer(Layer):
    """conv2d with a weight (out_channel, in_channel, kernel_size, kernel_size) and a bias (out_channel,) or None:
    x (N, in_channel, H, W) to (N, out_channel, oh, ow).

    Raises what `conv2d` raises, ValueError for a size below 1, TypeError for a size that is not an integer and for a
    bias that is not a boolean.
    """

    def __init__(
        self, in_channel: int, out_channel: int, kernel_size: int, bias: bool = True, stride: int = 1, padding: int = 0
    ):
        c, o = _integer("in_channel", in_channel, 1), _integer("out_channel", out_channel, 1)
        k, bias = _integer("kernel_size", kernel_size, 1), _boolean("bias", bias)
        self.stride, self.padding = _integer("stride", stride, 1), _integer("padding", padding, 0)
        self.weight = _uniform((o, c, k, k), fan_in=c * k * k)
        self.bias = _uniform(o, fan_in=c * k * k) if bias else None

    def forward(self, x: Operand) -> Value:
        x = as_value(x, "x")
        bias = None if self.bias is None else self.bias.astype(x.dtype)
        return conv2d(x, self.weight.astype(x.dtype), bias, self.stride, self.padding)

    def __repr__(self) -> str:
        o, c, k, _ = self.weight.shape
        return f"Conv2dLayer({c}, {o}, {k}, bias={self.bias is not None}, stride={self.stride}, padding={self.padding})"


# ---- Optimizer ------------------------------------------------------------------------------------------------------


class Optimizer:
    """Stochastic gradient descent: parameter -= lr * gradient.

    Raises TypeError unless parameters are Values, ValueError if there are none, for one that is given twice, for a
    constant, and for the result of an operation, which is computed anew, so that an update is lost.
    """

    def __init__(self, parameters: Iterable[Value]):
        if isinstance(parameters, Value) or not isinstance(parameters, Iterable):
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
            p._grad = None  # zero: a leaf has no _shared_grad

    def update(self, lr: float) -> None:
        """Take one step of gradient descent with the learning rate lr. Arrays that were handed in are not written to.

        Raises TypeError for an lr that is not a real number, ValueError if it is negative, infinite or nan.
        """
        lr = _real("lr", lr)
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must be a finite number, at least 0, got {lr}")
        updated = [p.data - lr * p.grad for p in self.parameters]  # all of them first: one may raise
        for p, data in zip(self.parameters, updated):
            p._data = data  # not .data: NumPy's - makes a scalar of a 0-d array, and a new type resets the gradient


# ---- Drawing --------------------------------------------------------------------------------------------------------


def draw_graph(value: Value) -> str:
    """The graph that computed value, as Graphviz DOT text: `dot -Tsvg` makes it a picture.

    Each Value is a box with its label, operation and shape, and its data and gradient if it has at most nine elements;
    arrows lead from operands to results.

    Raises TypeError for anything but a Value, and for a label that is not a str.
    """

    def short(data):
        return np.array2string(data, precision=4, separator=", ") if np.ndim(data) else f"{data:.4g}"

    order = topological_order(value)
    names = {node: f"n{i}" for i, node in enumerate(order)}
    lines = ["digraph {", "  rankdir=LR", "  node [shape=record]"]
    for node in order:
        if not isinstance(node.label, str):
            raise TypeError(f"a label must be a str, got {type(node.label).__name__}")
        fields = [node.label, node._op if node.requires_grad else "constant"]
        if node.shape:
            fields.append(f"shape {node.shape}")
        if np.size(node.data) <= 9:
            fields.append(f"data {short(node.data)}")
            if node.requires_grad:
                fields.append(f"grad {short(node.grad)}")
        text = " | ".join(_escaped(f) for f in fields if f)
        lines.append(f'  {names[node]} [label="{{ {text} }}"]')
        lines += [f"  {names[operand]} -> {names[node]}" for operand in node._prev]
    return "\n".join(lines + ["}"]) + "\n"


def _escaped(text):
    """Text inside a record's label, where DOT gives some characters a meaning."""
    text = "".join("\\" + c if c in '\\"{}|<>' else c for c in text.replace("&", "&amp;"))
    return text.replace("\n", "\\n")


# ---- Files ----------------------------------------------------------------------------------------------------------
# For save and load. Nothing here is about gradients.


def _write_arrays(path, arrays):
    """Write named arrays to an npz file: a new one beside it, which is then renamed. Links are followed."""
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{uuid.uuid4().hex}.tmp")  # a name that no other thread has, and that is never too long
    try:
        if target.exists() and not target.is_file():  # a folder, or a device, which the new file would replace
            raise OSError("it is not a regular file")
        with open(new, "xb") as file:
            if target.exists():
                shutil.copymode(target, new)
            with zipfile.ZipFile(file, "w") as archive:  # np.savez cannot save an array that is named file
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:  # for more than 2 GiB
                        np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except OSError as error:
        raise ValueError(f"cannot save weights to {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # it is not there if it was never made, or has been renamed
            os.unlink(new)


def _read_arrays(path):
    """The named arrays in an npz file."""
    try:
        content = Path(path).read_bytes()  # np.load would leave a damaged file open
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ValueError(f"cannot load weights from {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if archive.zip.testzip():  # np.load does not look at all checksums
                raise zipfile.BadZipFile
            return {name: np.asarray(archive[f"{name}.npy"]) for name in archive.files}  # [name] may find another
    except Exception:  # zipfile, zlib and NumPy raise a dozen different ones for a damaged file
        raise ValueError(f"cannot load weights from {path}: it is damaged, or no npz file") from None


# ---- Checks ---------------------------------------------------------------------------------------------------------


def _integer(name, value, minimum):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
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
    return float(value)


def _axes(axis, ndim):
    """axis (an integer, a tuple of integers, or None for all of them) as a tuple of integers from 0 to ndim - 1."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    axes = [_integer("axis", a, -ndim) for a in axes]
    if any(a >= ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(f"axis must name different axes out of {ndim}, got {axis}")
    return tuple(a % ndim for a in axes)


# ---- Memory ---------------------------------------------------------------------------------------------------------

# glibc's malloc returns large arrays to the operating system; to fetch them again page by page doubles the time of a
# step. So it may keep up to 256 MiB, in blocks of up to 32 MiB (man mallopt). Other systems have no mallopt.
with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
