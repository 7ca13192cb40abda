"""Train the CNN of model.py on MNIST, with the engine's own gradients and SGD.

    python train_on_MNIST.py                                 # train, and test
    python train_on_MNIST.py --save weights.npz              # and keep weights
    python train_on_MNIST.py --epochs 0 --load weights.npz   # test kept weights
    python train_on_MNIST.py --data fashion                  # other MNIST files

The loop is in `train`, one step of it in `train_step`. `python train_on_MNIST.py --help` lists all options.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Before NumPy starts: one thread is enough for matrices as small as these. More of them hardly save time, wait for
    # each other on a busy machine, and make the losses depend on the number of cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from engine import Optimizer, as_value, cross_entropy, no_grad
from model import CNN

EPOCHS = 11
BATCH_SIZE = 64
LR = 0.25  # the highest learning rate of the run
WARMUP = 500  # steps in which the learning rate rises to LR; starting with LR leaves some ReLUs inactive for ever
SEED = 0
DATA = Path(__file__).resolve().parent / "data"
LAST = Path("last.npz")  # where a run on a terminal leaves its weights, if --save names no other file

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels, scaled to 0 ... 1


# ---- Data -----------------------------------------------------------------------------------------------------------


def load_mnist(directory: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, y_train, X_test, y_test from the four files of a data set in MNIST's format, each gzipped or not.

    Images are float32 (n, 1, 28, 28), normalised to (pixel / 255 - MEAN) / DEVIATION; labels are int64 (n,), 0 ... 9.

    Raises ValueError with a sentence that names the file, if one is missing, damaged or not in this format.
    """
    return *_load_pair(Path(directory), "train"), *_load_pair(Path(directory), "t10k")


def _load_pair(directory, name):
    image_path, pixels = _read_idx(directory / f"{name}-images-idx3-ubyte", 0x803, (28, 28))
    label_path, labels = _read_idx(directory / f"{name}-labels-idx1-ubyte", 0x801, ())
    if len(labels) != len(pixels):
        raise ValueError(f"{label_path} has {len(labels):,} labels for the {len(pixels):,} images of {image_path.name}")
    if labels.max() > 9:
        raise ValueError(f"{label_path} has the label {labels.max()}, but labels are 0 ... 9")

    table = ((np.arange(256) / 255 - MEAN) / DEVIATION).astype(np.float32)  # what each of the 256 greys becomes
    images = np.empty((len(pixels), 1, 28, 28), np.float32)
    for i in range(0, len(pixels), 1000):  # in blocks, because NumPy makes an int64 of every index
        images[i : i + 1000, 0] = table[pixels[i : i + 1000]]
    return images, labels.astype(np.int64)


def _read_idx(path, magic, shape):
    """The path that was found, and the bytes (n, *shape) of its IDX file: the magic number, n and the shape, four bytes
    each, and the elements."""
    path, content = _read(path)
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
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(n, *shape)


def _read(path):
    """The content of path.gz, decompressed, or of path, and which of the two it was."""
    for found, opener in ((path.with_name(f"{path.name}.gz"), gzip.open), (path, open)):
        try:
            with opener(found, "rb") as file:
                return found, file.read()
        except FileNotFoundError:
            continue
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{found} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raise ValueError(f"{path} is missing, with .gz and without")


# ---- Training -------------------------------------------------------------------------------------------------------


def batches(X: np.ndarray, y: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch: all images with their labels, in a new random order, each batch moved by a pixel or not at all."""
    order = np.random.permutation(len(X))
    for i in range(0, len(X), batch_size):
        batch = order[i : i + batch_size]
        shift = np.random.randint(-1, 2, 2)  # down or up, right or left: worth 0.2 % of accuracy
        yield np.roll(X[batch], shift, (2, 3)), y[batch]


def learning_rate(step: int, steps: int, lr: float) -> float:
    """The learning rate of a step, 0 ... steps - 1: it rises linearly to lr, then falls linearly to 0.

    It rises for WARMUP steps, in a short run for a tenth of the steps.
    """
    warmup = min(WARMUP, steps // 10)
    return lr * min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))


def train_step(model: CNN, optimizer: Optimizer, X: np.ndarray, y: np.ndarray, lr: float) -> float:
    """One step of stochastic gradient descent; the loss, before it. Its graph is freed at the end."""
    optimizer.zero_grad()
    loss = cross_entropy(model(X), y)
    loss.backward()
    optimizer.update(lr)
    return loss.item()


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
    losses: list[float] | None = None,
) -> float:
    """Train the model in place with SGD, print one line for each epoch, and return the accuracy on the test images.

    Images are (n, 1, 28, 28), labels integers (n,). np.random.seed makes a run reproducible. The mean loss of each
    epoch is appended to losses, if given.

    Raises, before the first step, ValueError or TypeError for images and labels that do not fit, epochs or a batch_size
    below 1, or a wrong lr; and FloatingPointError when the loss is no longer finite. A KeyboardInterrupt is passed on
    after the line of its epoch.
    """
    (X_train, y_train), (X_test, y_test) = _checked(X_train, y_train), _checked(X_test, y_test)
    _check_settings(epochs, batch_size, lr)
    optimizer, steps = Optimizer(model.parameters()), epochs * math.ceil(len(X_train) / batch_size)
    rates = (learning_rate(step, steps, lr) for step in range(steps))
    progress = Progress(epochs, len(X_train))

    for _ in range(epochs):
        progress.start_epoch()
        try:
            for X, y in batches(X_train, y_train, batch_size):
                progress.add(train_step(model, optimizer, X, y, next(rates)), len(y))
            accuracy = evaluate(model, X_test, y_test)
        except KeyboardInterrupt:
            if progress.seen:
                progress.end_epoch(evaluate(model, X_test, y_test))
            raise
        progress.end_epoch(accuracy)
        if losses is not None:
            losses.append(progress.loss)
    return accuracy


def logits(model: CNN, X: np.ndarray, batch_size: int = 200) -> np.ndarray:
    """What the model answers to the images X (n, 1, 28, 28): a number for each class, (n, 10)."""
    with no_grad():
        return np.concatenate([model(X[i : i + batch_size]).data for i in range(0, len(X), batch_size)])


def predict(model: CNN, X: np.ndarray, batch_size: int = 200) -> np.ndarray:
    """The class that the model sees in each image: X (n, 1, 28, 28) to int64 (n,)."""
    return logits(model, X, batch_size).argmax(1)


def evaluate(model: CNN, X: np.ndarray, y: np.ndarray, batch_size: int = 200) -> float:
    """The share of the images X (n, 1, 28, 28) that the model gives their label y (n,), 0 ... 1.

    Raises ValueError or TypeError for images and labels that do not fit, or if there are none.
    """
    X, y = _checked(X, y)
    return float(np.mean(predict(model, X, batch_size) == y))


def _checked(X, y):
    """X and y as arrays, if they are images and their labels."""
    X, labels = as_value(X, "images").data, np.asarray(y)
    if np.shape(X)[1:] != (1, 28, 28):
        raise ValueError(f"images must be (n, 1, 28, 28), got shape {np.shape(X)}")
    if len(X) == 0 or labels.shape != (len(X),):
        raise ValueError(f"one label is needed for each image, at least one, got {X.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu" or isinstance(y, np.ma.MaskedArray):
        raise TypeError(f"labels must be integers, got {type(y).__name__} of dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels must be 0 ... 9, got {labels.min()} ... {labels.max()}")
    return X, labels


def _check_settings(epochs, batch_size, lr):
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number, at least 0, got {lr}")


# ---- Output ---------------------------------------------------------------------------------------------------------


class Progress:
    """Prints a training: a line for each epoch and, on a terminal, a live one that knows how long it will take."""

    def __init__(self, epochs: int, images: int):
        self.epochs, self.epoch, self.images, self.start = epochs, 0, images, time.perf_counter()

    def start_epoch(self) -> None:
        self.epoch, self.seen, self.total = self.epoch + 1, 0, 0.0
        self.epoch_start = self.shown = time.perf_counter()

    @property
    def loss(self) -> float:
        """The mean of the epoch so far."""
        return self.total / self.seen

    def add(self, loss: float, n: int) -> None:
        """Count a step with n images. Raises FloatingPointError for a loss that is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}: try a smaller learning rate")
        self.seen, self.total, now = self.seen + n, self.total + n * loss, time.perf_counter()
        if now - self.shown > 0.1:
            self.shown, share = now, self.seen / self.images
            speed = self.seen / (now - self.epoch_start)
            left = (now - self.start) * (self.epochs / (self.epoch - 1 + share) - 1)
            _live(
                f"{self._name()}   {share:4.0%}   loss {self.loss:.4f}   {speed:,.0f} images/s   {left:.0f} s left",
                f"{self._name()}  {share:4.0%}  {self.loss:.4f}  {left:.0f} s left",
            )

    def end_epoch(self, accuracy: float) -> None:
        _live("")
        if self.seen < self.images:
            _say(f"interrupted after {self.seen:,} of {self.images:,} images")
        accuracy, duration = f"{100 * accuracy:.2f} %", f"{time.perf_counter() - self.epoch_start:.1f} s"
        long = f"{self._name()}   loss {self.loss:.4f}   test accuracy {accuracy}   {duration}"
        _say(_fitting(long, f"{self._name()}  {self.loss:.4f}  {accuracy}  {duration}"))

    def _name(self):
        return f"epoch {self.epoch:{len(str(self.epochs))}}/{self.epochs}"


def most_wrong(model: CNN, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of the images X (n, 1, 28, 28) whose label y (n,) the model does not see, the surest mistake first;
    and of all images the class (n,) that it sees, and the probability (n,) that it gives it."""
    answers = logits(model, X)
    predicted = answers.argmax(1)
    confidence = 1 / np.exp(answers - answers.max(1, keepdims=True)).sum(1)  # the softmax's largest element
    wrong = np.flatnonzero(predicted != y)
    return wrong[np.argsort(-confidence[wrong], kind="stable")], predicted, confidence


def show(model: CNN, X: np.ndarray, y: np.ndarray) -> None:
    """Print those images X (n, 1, 28, 28) whose label y (n,) the model is most wrong about, and the confusion matrix.

    The most wrong is the one with the highest probability of a wrong answer.
    """
    X, y = _checked(X, y)
    wrong, predicted, confidence = most_wrong(model, X, y)
    side_by_side = max(1, _columns() // 30)
    shown = wrong[: 2 * side_by_side]
    _say(f"\n{len(shown)} of the {len(wrong):,} images that it gets wrong, the surest first:")
    for i in range(0, len(shown), side_by_side):
        row = shown[i : i + side_by_side]
        captions = [f"label {y[j]}, seen as {predicted[j]} ({confidence[j]:.1%})".replace("%", " %") for j in row]
        print("\n" + "".join(f"{caption:30}" for caption in captions).rstrip())
        for lines in zip(*(picture(X[j, 0]) for j in row)):
            print("".join(f"{line:30}" for line in lines).rstrip())
    _print_confusion(np.bincount(10 * y + predicted, minlength=100).reshape(10, 10))


def _print_confusion(counts):
    _say("\nRows are labels, columns what the network saw:")
    half = 10 if _columns() >= 65 else 5  # columns side by side
    for first in range(0, 10, half):
        digits = range(first, first + half)
        print("\n     " + "".join(f"{digit:6}" for digit in digits))
        for label, row in enumerate(counts):
            print(f"{label:5}" + "".join(f"{row[digit] or '.':>6}" for digit in digits))


def picture(image: np.ndarray) -> list[str]:
    """A normalised image (28, 28) as 12 lines of 24 characters, without its border of two pixels.

    A character is two pixels: its lower half, its upper half, both or none are filled.
    """
    ink = image[2:26, 2:26] > (0.3 - MEAN) / DEVIATION
    halves = " ▄▀█"
    try:
        halves.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a terminal or a file with fewer characters
        halves = " .'#"
    return ["".join(halves[2 * upper + lower] for upper, lower in zip(*rows)) for rows in zip(ink[::2], ink[1::2])]


def _terminal(stream):
    return stream is not None and stream.isatty()  # None: the shell has closed it, as by `>&-`


def _columns():
    return shutil.get_terminal_size().columns if _terminal(sys.stdout) else 80


def _fitting(*forms):
    """The first of these texts that fits into a line, or the last."""
    return next((text for text in forms if len(text) <= _columns()), forms[-1])


def _say(text):
    """Print text; on a terminal, lines that are too long for it are broken between words."""
    if _terminal(sys.stdout):
        text = "\n".join(_wrapped(line) for line in text.split("\n"))
    print(text, flush=True)


def _wrapped(line):
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, _columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _live(*forms):
    """On a terminal, write the first form that fits over the current line, where the next output overwrites it."""
    if _terminal(sys.stdout):
        width = _columns() - 1
        print("\r" + _fitting(*forms)[:width].ljust(width) + "\r", end="", flush=True)


# ---- Command line ---------------------------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def _terminate(number, frame):
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line argv (sys.argv's by default) and return the exit status: 0, 1 after an error, 130 after
    Ctrl-C, 143 after SIGTERM."""
    status, message = 0, ""
    try:
        _run(_parse(argv))
    except KeyboardInterrupt as stop:
        status, message = (143, "terminated") if isinstance(stop, Terminated) else (130, "interrupted")
    except BrokenPipeError:  # nobody reads on, as in `| head`
        status = 1
    except Exception as error:
        status, message = 1, f"error: {_sentence(error)}"
    with contextlib.suppress(OSError):
        if message:
            print(message, file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # leave nothing to be flushed at the exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _sentence(error):
    if isinstance(error, MemoryError):
        return f"out of memory {error}".rstrip()
    here = Path(__file__).resolve()
    changed = set(here.parent.glob("*.py")) - {here, here.with_name("engine.py")}  # model.py, and what it may import
    places = traceback.extract_tb(error.__traceback__)
    mistakes = [place for place in places if Path(place.filename).resolve() in changed]
    if not mistakes and isinstance(error, OSError):  # of the output: all others have become a ValueError
        return f"the output cannot be written: {error.strerror or error}"
    if not mistakes and isinstance(error, (ValueError, FloatingPointError)):
        return error
    place = (mistakes or places)[-1]
    words = textwrap.shorten(f": {error}", 300)
    return f"{type(error).__name__} in {place.filename}, line {place.lineno}{words}".rstrip(": ")


def _run(args):
    if args.save:
        _check_writable(args.save)  # before the training instead of after it
    np.random.seed(args.seed)
    model, losses, duration, failure = CNN(), [], "", ""
    if args.load:
        model.load(args.load)
    X_train, y_train, X_test, y_test = load_mnist(args.data)
    _print_header(args, model, len(X_train), len(X_test))
    if args.epochs:
        start = time.perf_counter()
        with _saved_if_stopped(model, args.save):
            accuracy = train(model, X_train, y_train, X_test, y_test, args.epochs, args.batch_size, args.lr, losses)
        duration = f", {time.perf_counter() - start:.0f} s of training"
        failure = _failure(accuracy, losses, y_test)
    else:
        accuracy = evaluate(model, X_test, y_test)
    path, notice = _keep(model, args, failure, _is_guessing(accuracy, y_test))
    _say(f"\ntest accuracy {100 * accuracy:.2f} %{duration}{notice}")
    if args.show or _interactive():
        show(model, X_test, y_test)
    if failure:
        _say(f"\n{failure}")
    else:
        _print_next(args, path)


def _print_header(args, model, training_images, test_images):
    name = "MNIST" if args.data == DATA else args.data
    _say(f"{training_images:,} training images and {test_images:,} test images from {name}")
    print(model)
    source = f"weights from {args.load}" if args.load else "new weights"
    _say(f"{sum(np.size(p.data) for p in model.parameters()):,} parameters, {source}")
    if args.epochs:
        settings = f"batch size {args.batch_size}, learning rate up to {args.lr:g}, seed {args.seed}"
        _say(f"epochs {args.epochs}, {settings}\n")


@contextlib.contextmanager
def _saved_if_stopped(model, path):
    """Whatever stops a training, its weights are saved first, unless it diverged, or nothing was learned yet and there
    is a file; and the live line is cleared."""
    before = [np.copy(p.data) for p in model.parameters()]
    try:
        yield
    except BaseException as stop:
        learned = any(not np.array_equal(a, p.data) for a, p in zip(before, model.parameters()))
        worthless = not path or isinstance(stop, FloatingPointError) or (path.exists() and not learned)
        if not worthless:
            model.save(path)
        with contextlib.suppress(OSError, ValueError):  # perhaps nothing can be printed: that was the reason
            _live("")
            if not worthless:
                _say(f"weights saved to {path}")
        raise


def _is_guessing(accuracy, y):
    guessing = np.bincount(y).max() / len(y)  # always the most frequent label
    return accuracy < guessing + 0.1 * (1 - guessing)  # untrained networks are right about up to a fifth of MNIST


def _failure(accuracy, losses, y):
    """A sentence about a training that learned nothing, or nothing."""
    if _is_guessing(accuracy, y):
        return "It learned nothing: that is hardly better than guessing. Try another --lr, or more --epochs."
    if losses[-1] > losses[0]:
        return f"It learned nothing: the loss rose from {losses[0]:.4f} to {losses[-1]:.4f}. Try a smaller --lr."
    return ""


def _keep(model, args, failure, guessing):
    """Save the weights. Returns the file that they are in, or None, and a line about it."""
    if args.save and args.epochs and guessing and args.save.exists():
        return None, f"\n{args.save} is kept as it was"
    if args.save:
        model.save(args.save)
        return args.save, f"\nweights saved to {args.save}"
    if not args.epochs:
        return args.load, ""
    if failure or not _interactive():
        return None, ""
    try:
        model.save(LAST)
    except ValueError as error:  # nobody has asked for it
        return None, f"\n{error}"
    return LAST, f"\nweights saved to {LAST}, until the next run on a terminal"


def _interactive():
    """Does somebody sit there? Then a run shows its mistakes and leaves its weights without being asked."""
    return _terminal(sys.stdin) and _terminal(sys.stdout)


def _print_next(args, path):
    shown = args.show or _interactive()
    print("\nNext:")
    if path and (args.epochs or not shown):
        options = ["--epochs", "0", "--load", str(path)]
        options += [] if args.data == DATA else ["--data", str(args.data)]
        options += [] if _interactive() else ["--show"]
        join = subprocess.list2cmdline if os.name == "nt" else shlex.join
        script, options = join([sys.orig_argv[0], sys.argv[0]]), join(options)
        print(_fitting(f"  {script} {options}", f"  {script} \\\n    {options}"))
        _say("    shows its mistakes, without training")
    elif not shown:
        _say("  --show draws images that it gets wrong")
    if not path:
        _say("  --save weights.npz keeps what it learns")
    _say("  model.py is the network: change it and run this again")


def _check_writable(path):
    """Do what Layer.save will do in this folder and with this name."""
    try:
        target = Path(os.path.realpath(path))
        if not target.exists():
            open(target, "xb").close()
            os.unlink(target)
        elif not target.is_file():
            raise OSError("it is not a regular file")
        with tempfile.NamedTemporaryFile(dir=target.parent):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ValueError(f"cannot save weights to {path}: {getattr(error, 'strerror', None) or error}") from None


NUMBERS = {  # option: its type, what it may be, and that in words
    "epochs": (int, lambda n: n >= 0, "a whole number, 0 or more"),
    "batch_size": (int, lambda n: n >= 1, "a whole number, 1 or more"),
    "lr": (float, lambda x: 0 < x < math.inf, "a number above 0"),
    "seed": (int, lambda n: 0 <= n < 2**32, "a whole number, 0 to 4294967295"),
}


def _parse(argv):
    parser = argparse.ArgumentParser(
        description="Train the CNN of model.py on MNIST, and test it after every epoch.",
        epilog="examples:\n" + (__doc__ or "\n\n").split("\n\n")[1],  # no docstring under python -OO
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", default=EPOCHS, metavar="N", help="passes over all images (%(default)s); 0 only tests --load")
    add("--batch-size", default=BATCH_SIZE, metavar="N", help="images in a step (%(default)s)")
    add("--lr", default=LR, metavar="X", help="highest learning rate (%(default)s); it rises from 0, then falls to 0")
    add("--seed", default=SEED, metavar="N", help="the same seed prints the same losses (%(default)s)")
    add("--data", type=Path, default=DATA, metavar="DIR", help="folder of four files in MNIST's format, gzipped or not")
    add(
        "--save",
        type=Path,
        metavar="FILE",
        help=f"write the weights here, after Ctrl-C too (default: {LAST}, on a terminal, at the end)",
    )
    add("--load", type=Path, metavar="FILE", help="start from the weights in this file")
    add("--show", action="store_true", help="draw images that it gets wrong, and more (on a terminal always)")
    args = parser.parse_args(argv)
    for name, (kind, allowed, words) in NUMBERS.items():
        try:
            number = kind(getattr(args, name))
        except ValueError:
            number = math.nan
        if not allowed(number):
            parser.error(f"--{name.replace('_', '-')} must be {words}")
        setattr(args, name, number)
    if args.epochs == 0 and not args.load:
        parser.error("--epochs 0 needs --load FILE")
    return args


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
