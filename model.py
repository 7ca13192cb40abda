"""The CNN that learns MNIST, built on the engine."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np

from engine import Conv2dLayer, Layer, LinearLayer, Operand, Value, as_value, max_pooling

# The parameters, in the order of CNN.parameters(): their names in a file of weights.
NAMES = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "linear.weight", "linear.bias")


class CNN(Layer):
    """A small LeNet: images x (n, 1, 28, 28), raw or a Value, to the logits of ten classes (n, 10).

        input                             (n, 1, 28, 28)
        conv1, 3x3, padding 1, and ReLU   (n, 4, 28, 28)
        max_pooling, stride 2             (n, 4, 14, 14)
        conv2, 3x3, padding 1, and ReLU   (n, 8, 14, 14)
        max_pooling, stride 2             (n, 8, 7, 7)
        linear, 392 to 10                 (n, 10)

    n may be 0. Raises ValueError for x of another shape, TypeError for an x that is no real numbers.
    """

    def __init__(self):
        self.conv1 = Conv2dLayer(1, 4, 3, padding=1)
        self.conv2 = Conv2dLayer(4, 8, 3, padding=1)
        self.linear = LinearLayer(8 * 7 * 7, 10)

    def forward(self, x: Operand) -> Value:
        x = as_value(x, "x")
        if len(x.shape) != 4 or x.shape[1:] != (1, 28, 28):
            raise ValueError(f"CNN takes images x (n, 1, 28, 28), got shape {x.shape}")
        x = max_pooling(self.conv1(x).relu(), 2)  # (n, 4, 14, 14)
        x = max_pooling(self.conv2(x).relu(), 2)  # (n, 8, 7, 7)
        return self.linear(x.reshape(x.shape[0], 8 * 7 * 7))  # (n, 10)

    def parameters(self) -> list[Value]:
        """The six Values to train: the weight and the bias of conv1, conv2 and linear."""
        return self.conv1.parameters() + self.conv2.parameters() + self.linear.parameters()

    def __repr__(self) -> str:
        return (
            "CNN(\n"
            f"  conv1: {self.conv1}, relu, max_pooling(2)\n"
            f"  conv2: {self.conv2}, relu, max_pooling(2)\n"
            f"  linear: {self.linear}\n"
            ")"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to an npz file of exactly this name.

        They go to a temporary file beside it, which then takes its place: whatever happens on the way, there is never
        half a file, and the old one is there until the new one is complete.

        Raises ValueError if the file cannot be written.
        """
        path = Path(path)
        if path.exists() and not path.is_file():  # a folder; or a device, which the temporary file would replace
            raise ValueError(f"cannot save weights to {path}: it is not a regular file")
        archive = io.BytesIO()  # np.savez would add .npz to a name
        np.savez(archive, **{name: p.data for name, p in zip(NAMES, self.parameters())})
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(archive.getvalue())
            os.replace(temporary, path)
        except OSError as error:
            raise ValueError(f"cannot save weights to {path}: {error.strerror or error}") from None
        finally:
            with contextlib.suppress(OSError):  # it is not there if it was never made, or has been renamed
                os.unlink(temporary)

    def load(self, path: str | os.PathLike[str]) -> CNN:
        """Take the parameters from a file that `save` wrote, as float64, and return self.

        Raises ValueError for a file that is missing, damaged or of another model; the parameters are then unchanged.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: np.asarray(archive[name]) for name in archive.files}
        except OSError as error:
            raise ValueError(f"cannot load weights from {path}: {error.strerror or error}") from None
        except Exception:  # zipfile, zlib and NumPy raise a dozen different ones for a damaged file
            raise ValueError(f"cannot load weights from {path}: it is damaged, or no npz file") from None

        if sorted(arrays) != sorted(NAMES):
            raise ValueError(f"cannot load weights from {path}: it holds {sorted(arrays)}, not {sorted(NAMES)}")
        for name, p in zip(NAMES, self.parameters()):
            shape, dtype = arrays[name].shape, arrays[name].dtype
            if shape != p.shape or dtype.kind != "f":
                raise ValueError(
                    f"cannot load weights from {path}: {name} must hold real numbers of shape {p.shape}, "
                    f"got {dtype} of shape {shape}"
                )
        for name, p in zip(NAMES, self.parameters()):
            p.data = np.ascontiguousarray(arrays[name], np.float64)
        return self
