"""Train the CNN of model.py on MNIST. Start to read at `train_step`: `train` repeats it, the rest loads and shows.

    python train_on_MNIST.py                                 # train, and test after every epoch
    python train_on_MNIST.py --save weights.npz              # keep the weights
    python train_on_MNIST.py --epochs 0 --load weights.npz   # test them
    python train_on_MNIST.py --data fashion                  # train on other images: see --help

The test images are looked at after every epoch, but they decide nothing: the settings below were chosen on the last
10,000 training images, which were held back from training for that.
"""

import argparse
import gzip
import math
import os
import shutil
import sys
import time
import zlib
from pathlib import Path

if __name__ == "__main__":
    # Before NumPy starts: one thread is enough for small matrices, and several wait for each other on a busy machine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from engine import Optimizer, cross_entropy, no_grad
from model import CNN

EPOCHS = 11
BATCH_SIZE = 64
LR = 0.25  # the highest learning rate of the run
WARMUP = 500  # steps in which the learning rate rises to LR; starting with LR leaves some ReLUs inactive for ever
SEED = 0
DATA = Path(__file__).resolve().parent / "data"

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels, scaled to 0 ... 1


# ---- Data -----------------------------------------------------------------------------------------------------------


def load_mnist(directory):
    """X_train, y_train, X_test, y_test from the four files of a data set in MNIST's format, each gzipped or not.

    Images are float32 (n, 1, 28, 28), normalised to (pixel / 255 - MEAN) / DEVIATION; labels are int64 (n,).
    Raises OSError if a file is missing, ValueError if one is damaged.
    """
    X_and_y = []
    for name in ("train", "t10k"):
        images = _read_idx(Path(directory) / f"{name}-images-idx3-ubyte", 3)[:, np.newaxis].astype(np.float32)
        images -= 255 * MEAN
        images /= 255 * DEVIATION
        labels = _read_idx(Path(directory) / f"{name}-labels-idx1-ubyte", 1).astype(np.int64)
        if len(images) != len(labels) or len(labels) == 0:
            raise ValueError(f"{directory} has {len(images):,} images and {len(labels):,} labels named {name}")
        X_and_y += [images, labels]
    return X_and_y


def _read_idx(path, axes):
    """The array in an IDX file: the bytes 0, 0, 8 and the number of axes, four bytes for each length, the elements."""
    path = next((p for p in (path.with_name(path.name + ".gz"), path) if p.exists()), path)
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":  # gzip's own first bytes
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is damaged, or not an IDX file of bytes with {axes} axes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# ---- Training -------------------------------------------------------------------------------------------------------


def batches(X, y, batch_size):
    """One epoch: all images with their labels, in a new random order, each batch moved by a pixel or not at all."""
    order = np.random.permutation(len(X))
    for i in range(0, len(X), batch_size):
        batch = order[i : i + batch_size]
        shift = np.random.randint(-1, 2, 2)  # down or up, right or left: worth 0.2 % of accuracy
        yield np.roll(X[batch], shift, (2, 3)), y[batch]


def learning_rate(step, steps, lr):
    """The learning rate of a step, 0 ... steps - 1: it rises linearly to lr, then falls linearly to 0.

    It rises for WARMUP steps, in a short run for a tenth of the steps.
    """
    warmup = min(WARMUP, steps // 10)
    return lr * min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))


def train_step(model, optimizer, X, y, lr):
    """One step of stochastic gradient descent; returns the loss before it."""
    optimizer.zero_grad()
    loss = cross_entropy(model(X), y)
    loss.backward()
    optimizer.update(lr)
    return loss.item()


@np.errstate(all="ignore")  # an overflow makes the loss infinite or nan, which is an error below
def train(model, X_train, y_train, X_test, y_test, epochs=EPOCHS, batch_size=BATCH_SIZE, lr=LR, save=None):
    """Train the model in place, print a line for each epoch, and return the accuracy on the test images.

    The weights are saved to the file `save` after every epoch, if it is given. np.random.seed makes a run reproducible.
    Raises FloatingPointError when the loss is no longer finite.
    """
    optimizer = Optimizer(model.parameters())
    step, steps = 0, epochs * math.ceil(len(X_train) / batch_size)
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        name = f"epoch {epoch:{len(str(epochs))}}/{epochs}"
        losses = []
        for X, y in batches(X_train, y_train, batch_size):
            losses.append(train_step(model, optimizer, X, y, learning_rate(step, steps, lr)))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]}: try a smaller learning rate")
            step += 1
            if step % 20 == 0:
                left = (time.perf_counter() - start) * (steps / step - 1)
                _live(f"{name} {step / steps:4.0%} loss {np.mean(losses):.4f} {left:.0f} s left")
        accuracy = evaluate(model, X_test, y_test)
        if save:
            model.save(save)
        _live("")
        seconds = time.perf_counter() - start
        print(f"{name}   loss {np.mean(losses):.4f}   accuracy {100 * accuracy:.2f} %   {seconds:.1f} s", flush=True)
    return accuracy


def _live(text):
    """On a terminal, write text over the current line, where the next output overwrites it."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width), end="\r", flush=True)


# ---- Testing --------------------------------------------------------------------------------------------------------


def logits(model, X, batch_size=200):
    """The logits for the images X (n, 1, 28, 28): one for each class, (n, 10)."""
    with no_grad():
        return np.concatenate([model(X[i : i + batch_size]).data for i in range(0, len(X), batch_size)])


def predict(model, X, batch_size=200):
    """The predicted class of each image: X (n, 1, 28, 28) to int64 (n,)."""
    return logits(model, X, batch_size).argmax(1)


def evaluate(model, X, y, batch_size=200):
    """The share of the images X (n, 1, 28, 28) whose predicted class is their label in y (n,)."""
    return float(np.mean(predict(model, X, batch_size) == y))


def mistakes(model, X, y):
    """Indices of the misclassified images, most confident first; for all images, predicted classes and confidences."""
    z = logits(model, X)
    predicted = z.argmax(1)
    confidence = 1 / np.exp(z - z.max(1, keepdims=True)).sum(1)  # the softmax's largest element
    wrong = np.flatnonzero(predicted != y)
    return wrong[np.argsort(-confidence[wrong])], predicted, confidence


def show(model, X, y):
    """Draw the six most confident mistakes on the images X (n, 1, 28, 28) with the labels y (n,)."""
    wrong, predicted, confidence = mistakes(model, X, y)
    print(f"\n{len(wrong):,} images are misclassified; these are the most confident mistakes:")
    side_by_side = max(1, shutil.get_terminal_size().columns // 30)
    for i in range(0, min(6, len(wrong)), side_by_side):
        row = wrong[i : min(6, i + side_by_side)]
        captions = [f"label {y[j]}, predicted {predicted[j]}, {100 * confidence[j]:.1f} %" for j in row]
        for lines in (captions, *zip(*(picture(X[j, 0]) for j in row))):
            print("".join(f"{line:30}" for line in lines).rstrip())
        print()


def picture(image):
    """A normalised image (28, 28) without its border as 12 lines of 24 characters, each for two pixels."""
    halves = " ▄▀█" if "utf" in str(sys.stdout.encoding).lower() else " .'#"  # neither, the lower, the upper, both
    ink = image[2:26, 2:26] > (0.3 - MEAN) / DEVIATION
    return ["".join(halves[2 * upper + lower] for upper, lower in zip(*rows)) for rows in zip(ink[::2], ink[1::2])]


# ---- Command line ---------------------------------------------------------------------------------------------------


def main(argv=None):
    """Run the command line argv, by default that of this process. Errors end in SystemExit."""
    args = parse(argv)
    np.random.seed(args.seed)
    model = CNN()
    try:
        X_train, _, X_test, y_test = data = load_mnist(args.data)
        if args.load:
            model.load(args.load)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(X_train):,} training images, {len(X_test):,} test images", model, sep="\n")
    print(f"{sum(np.size(p.data) for p in model.parameters()):,} parameters")
    if args.epochs:
        print(f"epochs {args.epochs}, batch size {args.batch_size}, learning rate {args.lr:g}, seed {args.seed}\n")
    start = time.perf_counter()
    try:
        if args.epochs:
            accuracy = train(model, *data, args.epochs, args.batch_size, args.lr, args.save)
        else:
            accuracy = evaluate(model, X_test, y_test)
    except BrokenPipeError:  # nobody reads on, as after `| head`
        raise
    except (OSError, FloatingPointError) as error:
        _live("")
        sys.exit(f"error: {error}")
    print(f"\ntest accuracy {100 * accuracy:.2f} %, {time.perf_counter() - start:.0f} s")
    if args.show or sys.stdout.isatty():
        show(model, X_test, y_test)


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Train the CNN of model.py on MNIST, and test it after every epoch.",
        epilog="Fashion-MNIST is in github.com/zalandoresearch/fashion-mnist, in data/fashion: the same four files, "
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz.",
    )
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, metavar="N", help="passes over all training images (%(default)s)")
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="images in a step (%(default)s)")
    add("--lr", type=float, default=LR, metavar="X", help="the highest learning rate (%(default)s)")
    add("--seed", type=int, default=SEED, metavar="N", help="the same seed repeats a run (%(default)s)")
    add("--data", type=Path, default=DATA, metavar="DIR", help="folder of four files in MNIST's format, gzipped or not")
    add("--save", type=Path, metavar="FILE", help="write the weights to this file after every epoch")
    add("--load", type=Path, metavar="FILE", help="start from the weights in this file")
    add("--show", action="store_true", help="draw the most confident mistakes, also if the output is not a terminal")
    args = parser.parse_args(argv)
    for allowed, words in (
        (args.epochs >= 0, "--epochs must be at least 0"),
        (args.epochs or args.load, "--epochs 0 only tests: it needs --load FILE"),
        (args.batch_size >= 1, "--batch-size must be at least 1"),
        (0 < args.lr < math.inf, "--lr must be a number above 0"),
        (0 <= args.seed < 2**32, "--seed must be between 0 and 4294967295"),
    ):
        if not allowed:
            parser.error(words)
    return args


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError) as stop:
        _live("")
        os._exit(130 if isinstance(stop, KeyboardInterrupt) else 1)  # without a flush, which would fail again
