"""Train the CNN of model.py on MNIST, with the engine's own gradients and SGD.

    python train_on_MNIST.py                                    train, and test after every epoch
    python train_on_MNIST.py --save weights.npz                 ... and keep what was learned
    python train_on_MNIST.py --epochs 0 --load weights.npz      test a network that was saved
    python train_on_MNIST.py --epochs 0 --load weights.npz --show   ... and look at its mistakes
    python train_on_MNIST.py --data fashion                     another data set in MNIST's format
    python train_on_MNIST.py --help                             all options

The first command prints:

    60,000 training images and 10,000 test images from MNIST
    CNN(
      conv1: Conv2dLayer(1, 4, 3, bias=True, stride=1, padding=1), relu, max_pooling(2)
      conv2: Conv2dLayer(4, 8, 3, bias=True, stride=1, padding=1), relu, max_pooling(2)
      linear: LinearLayer(392, 10)
    ): 4,266 parameters, new weights
    epochs 12, batch size 32, learning rate 0.15 falling to 0, seed 0

    epoch  1/12   loss 0.2453   test accuracy 97.09 %   2.7 s
    epoch  2/12   loss 0.1158   test accuracy 97.26 %   2.7 s
    epoch  3/12   loss 0.0961   test accuracy 98.21 %   2.7 s
    epoch  4/12   loss 0.0863   test accuracy 98.43 %   2.8 s
    epoch  5/12   loss 0.0795   test accuracy 97.75 %   2.7 s
    epoch  6/12   loss 0.0733   test accuracy 98.33 %   2.7 s
    epoch  7/12   loss 0.0676   test accuracy 98.45 %   2.7 s
    epoch  8/12   loss 0.0636   test accuracy 98.59 %   2.6 s
    epoch  9/12   loss 0.0600   test accuracy 98.55 %   2.6 s
    epoch 10/12   loss 0.0554   test accuracy 98.73 %   2.7 s
    epoch 11/12   loss 0.0512   test accuracy 98.78 %   2.7 s
    epoch 12/12   loss 0.0496   test accuracy 98.81 %   2.8 s

    test accuracy 98.81 %, 32 s of training

    Next:
      --show draws images that it gets wrong
      --save weights.npz keeps what it learns, --load weights.npz starts from there
      model.py is the network: change it and run this again
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Before NumPy starts: one thread is enough for matrices as small as these. More of them hardly save time, wait for
    # each other on a busy machine, and make the losses depend on the number of cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from engine import Optimizer, cross_entropy, no_grad
from model import CNN

EPOCHS = 12
BATCH_SIZE = 32
LR = 0.15  # at the start; it falls linearly to 0. Larger ones leave some seeds with channels whose ReLU is never active
SEED = 0
DATA = Path(__file__).resolve().parent / "data"

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels, scaled to 0 ... 1
SHOWN = 6  # images in --show


# ---- Data -----------------------------------------------------------------------------------------------------------


def load_mnist(directory: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, y_train, X_test, y_test from the four files of a data set in MNIST's format, each gzipped or not.

    Images are float32 (n, 1, 28, 28), normalised to (pixel / 255 - MEAN) / DEVIATION; labels are int64 (n,), 0 ... 9.

    Raises ValueError with a sentence that names the file, if one is missing, damaged or not in this format.
    """
    return *_load_pair(Path(directory), "train"), *_load_pair(Path(directory), "t10k")


def _load_pair(directory, name):
    image_path = _find(directory, f"{name}-images-idx3-ubyte")
    label_path = _find(directory, f"{name}-labels-idx1-ubyte")
    pixels = _read_idx(image_path, 0x803, (28, 28))
    labels = _read_idx(label_path, 0x801, ())
    if len(labels) != len(pixels):
        raise ValueError(f"{label_path} has {len(labels):,} labels for the {len(pixels):,} images of {image_path.name}")
    if labels.max() > 9:
        raise ValueError(f"{label_path} has the label {labels.max()}, but labels are 0 ... 9")

    table = ((np.arange(256) / 255 - MEAN) / DEVIATION).astype(np.float32)  # what each of the 256 greys becomes
    images = np.empty((len(pixels), 1, 28, 28), np.float32)
    for i in range(0, len(pixels), 1000):  # in blocks, because NumPy makes an int64 of every index
        images[i : i + 1000, 0] = table[pixels[i : i + 1000]]
    return images, labels.astype(np.int64)


def _find(directory, name):
    for path in (directory / f"{name}.gz", directory / name):
        if path.exists():
            return path
    raise ValueError(f"{directory / name} is missing, with .gz and without")


def _read_idx(path, magic, shape):
    """The bytes (n, *shape) of an IDX file: its magic number, n and the shape, four bytes each, and the elements."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    start = 4 * (2 + len(shape))
    found, n, *sizes = (int.from_bytes(content[i : i + 4], "big") for i in range(0, start, 4))
    if found != magic:
        raise ValueError(f"{path} must start with the magic number {magic:#x}, but starts with {found:#x}")
    if len(content) != start + n * math.prod(sizes):
        raise ValueError(f"{path} has {len(content):,} bytes, but its header says {start + n * math.prod(sizes):,}")
    if tuple(sizes) != shape:
        raise ValueError(f"{path} has images of {sizes[0]} x {sizes[1]} pixels, but the network takes 28 x 28")
    if n == 0:
        raise ValueError(f"{path} is empty: its header says 0")
    return np.frombuffer(content, np.uint8, offset=start).reshape(n, *shape)


# ---- Training -------------------------------------------------------------------------------------------------------


def predict(model: CNN, X: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """The class that the model sees in each image: X (n, 1, 28, 28) to int64 (n,)."""
    with no_grad():
        return np.concatenate([model(X[i : i + batch_size]).data.argmax(1) for i in range(0, len(X), batch_size)])


def evaluate(model: CNN, X: np.ndarray, y: np.ndarray, batch_size: int = 100) -> float:
    """The share of the images X (n, 1, 28, 28) that the model gives their label y (n,), 0 ... 1.

    Raises ValueError for images and labels that do not fit, or if there are none.
    """
    _check_pair(X, y)
    return float(np.mean(predict(model, X, batch_size) == y))


@np.errstate(all="ignore")  # no warnings of overflows: they make the loss inf or nan, which is an error below
def train(
    model: CNN,
    X_train: np.ndarray,
    y_train: np.ndarray,
    X_test: np.ndarray,
    y_test: np.ndarray,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    lr: float = LR,
) -> float:
    """Train the model in place with SGD, print one line for each epoch, and return the accuracy on the test images.

    Images are (n, 1, 28, 28), labels integers (n,). Each epoch takes all images in a new random order and moves each
    batch by a pixel or not at all; the learning rate falls linearly from lr to 0 over the whole run. np.random.seed
    makes a run reproducible.

    Raises ValueError for images and labels that do not fit, epochs or a batch_size below 1, or a wrong lr, and
    FloatingPointError when the loss is no longer finite. A KeyboardInterrupt is passed on after the line of its epoch.
    """
    _check_pair(X_train, y_train)
    _check_pair(X_test, y_test)
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    n, optimizer = len(X_train), Optimizer(model.parameters())
    step, steps = 0, epochs * math.ceil(n / batch_size)

    for epoch in range(1, epochs + 1):
        order, seen, total = np.random.permutation(n), 0, 0.0
        start = shown = time.perf_counter()

        def finish(note=""):  # the epoch's line
            accuracy = evaluate(model, X_test, y_test)
            _live("")
            print(
                f"epoch {epoch:{len(str(epochs))}}/{epochs}   loss {total / seen:.4f}   "
                f"test accuracy {100 * accuracy:.2f} %   {time.perf_counter() - start:.1f} s{note}",
                flush=True,
            )
            return accuracy

        try:
            for i in range(0, n, batch_size):
                batch = order[i : i + batch_size]
                optimizer.zero_grad()
                shift = np.random.randint(-1, 2, 2)  # by a pixel down or up, right or left: 0.2 % more accuracy
                loss = cross_entropy(model(np.roll(X_train[batch], shift, (2, 3))), y_train[batch])
                if not np.isfinite(loss.data):
                    _live("")
                    raise FloatingPointError(f"the loss is {loss.data}: try a smaller learning rate than {lr:g}")
                loss.backward_all()
                optimizer.update(lr * (1 - step / steps))
                step, seen, total = step + 1, seen + len(batch), total + len(batch) * float(loss.data)
                now = time.perf_counter()
                if now - shown > 0.1:
                    shown, speed = now, seen / (now - start)
                    _live(f"epoch {epoch}/{epochs}   {seen / n:4.0%}   loss {total / seen:.4f}   {speed:,.0f} images/s")
            accuracy = finish()
        except KeyboardInterrupt:
            if seen:
                finish(f"   (interrupted after {seen:,} of {n:,} images)")
            raise
    return accuracy


def _check_pair(X, y):
    if np.ndim(X) == 0 or len(X) == 0 or np.shape(y) != (len(X),):
        raise ValueError(f"one label is needed for each image, at least one, got {np.shape(X)} and {np.shape(y)}")


def _live(text):
    """On a terminal, write text over the current line, where the next output overwrites it."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width) + "\r", end="", flush=True)


# ---- Showing --------------------------------------------------------------------------------------------------------


def show(model: CNN, X: np.ndarray, y: np.ndarray) -> None:
    """Print some of the images X (n, 1, 28, 28) whose label y (n,) the model does not see, and the confusion matrix."""
    predicted = predict(model, X)
    wrong = np.flatnonzero(predicted != y)
    shown = wrong[:SHOWN]
    print(f"\n{len(shown)} of the {len(wrong):,} images that it gets wrong:")
    columns = max(1, shutil.get_terminal_size().columns // 26)
    for i in range(0, len(shown), columns):
        row = shown[i : i + columns]
        print()
        print("  ".join(f"{f'label {y[j]}, seen as {predicted[j]}':24}" for j in row))
        for lines in zip(*(picture(X[j, 0]) for j in row)):
            print("  ".join(lines))

    print("\nRows are labels, columns what the network saw:\n")
    print("     " + "".join(f"{digit:6}" for digit in range(10)))
    counts = np.bincount(10 * y + predicted, minlength=100).reshape(10, 10)
    for digit, row in enumerate(counts):
        print(f"{digit:5}" + "".join(f"{count or '.':>6}" for count in row))


def picture(image: np.ndarray) -> list[str]:
    """A normalised image (28, 28) as 12 lines of 24 characters, without its border of two pixels.

    A character is two pixels: its lower half, its upper half, both or none are filled.
    """
    ink = image[2:26, 2:26] > (0.3 - MEAN) / DEVIATION
    halves = " ▄▀█"
    try:
        halves.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal or a file with fewer characters
        halves = " .'#"
    return ["".join(halves[2 * upper + lower] for upper, lower in zip(*rows)) for rows in zip(ink[::2], ink[1::2])]


# ---- Command line ---------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line argv (sys.argv's by default) and return the exit status: 0, 1 after an error, 130 after
    Ctrl-C."""
    args = _parse(argv)
    try:
        _run(args)
        sys.stdout.flush()
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on, as in `| head`: leave nothing to be flushed at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _run(args):
    if args.save:
        _check_writable(args.save)  # before the training instead of after it
    np.random.seed(args.seed)
    model = CNN()
    if args.load:
        model.load(args.load)
    X_train, y_train, X_test, y_test = load_mnist(args.data)

    name = "MNIST" if args.data == DATA else args.data
    print(f"{len(X_train):,} training images and {len(X_test):,} test images from {name}")
    source = f"weights from {args.load}" if args.load else "new weights"
    print(f"{model}: {sum(p.data.size for p in model.parameters()):,} parameters, {source}")
    if args.epochs == 0:
        accuracy, duration = evaluate(model, X_test, y_test), ""
    else:
        settings = f"batch size {args.batch_size}, learning rate {args.lr:g} falling to 0, seed {args.seed}"
        print(f"epochs {args.epochs}, {settings}\n", flush=True)
        start = time.perf_counter()
        try:
            accuracy = train(model, X_train, y_train, X_test, y_test, args.epochs, args.batch_size, args.lr)
        except (KeyboardInterrupt, BrokenPipeError):
            _save(model, args.save)
            raise
        duration = f", {time.perf_counter() - start:.0f} s of training"
    print(f"\ntest accuracy {100 * accuracy:.2f} %{duration}")
    _save(model, args.save)
    if args.show:
        show(model, X_test, y_test)

    print("\nNext:")
    if not args.show:
        print("  --show draws images that it gets wrong")
    if not args.save and not args.load:
        print("  --save weights.npz keeps what it learns, --load weights.npz starts from there")
    print("  model.py is the network: change it and run this again")


def _save(model, path):
    if path:
        model.save(path)
        print(f"weights saved to {path}")


def _check_writable(path):
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot save weights to {path}: it is not a regular file")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}."):
            pass
    except OSError as error:
        raise ValueError(f"cannot save weights to {path}: {error.strerror}") from None


def _parse(argv):
    parser = argparse.ArgumentParser(description="Train the CNN of model.py on MNIST, and test it after every epoch.")
    add = parser.add_argument
    add(
        "--epochs",
        type=natural_number,
        default=EPOCHS,
        metavar="N",
        help="passes over all images (%(default)s); 0 only tests the weights of --load",
    )
    add("--batch-size", type=positive_integer, default=BATCH_SIZE, metavar="N", help="images in a step (%(default)s)")
    add(
        "--lr",
        type=positive_number,
        default=LR,
        metavar="X",
        help="learning rate at the start (%(default)s); it falls linearly to 0",
    )
    add("--seed", type=seed, default=SEED, metavar="N", help="the same seed prints the same losses (%(default)s)")
    add(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help="folder of four files in MNIST's format, gzipped or not (data, beside this script)",
    )
    add("--save", type=Path, metavar="FILE", help="write the weights to this npz file, after Ctrl-C too")
    add("--load", type=Path, metavar="FILE", help="start from the weights in this npz file")
    add("--show", action="store_true", help="draw images that it gets wrong, and print the confusion matrix")
    args = parser.parse_args(argv)
    if args.epochs == 0 and not args.load:
        parser.error("argument --epochs: 0 needs --load FILE")
    return args


# What an option takes; argparse answers a ValueError with "invalid positive_integer value: '0'".


def natural_number(text):
    if int(text) < 0:
        raise ValueError
    return int(text)


def positive_integer(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def positive_number(text):
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def seed(text):
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
