"""How fast the engine is, next to PyTorch and micrograd where they are installed (pip install torch micrograd).

    python tests/benchmark.py                       all parts, with every seventh shape of conv, in at most 90 seconds
    python tests/benchmark.py step conv             a part or several: step, conv (all 90 shapes), scalar, load
    python tests/benchmark.py step --rounds 9       more rounds

Every measurement runs in a process of its own, because the threads of two libraries in one process wait for each other,
and the libraries take turns for several rounds. Times are medians; a ratio is the median of the rounds' ratios, and
below 1 the engine is faster.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (16, 32, 64, 256, 1024)
CHANNELS, SIZES, KERNELS, STRIDES = ((1, 8), (3, 16), (16, 32), (64, 64)), (14, 56, 112, 224), (1, 3, 5), (1, 2)
SHAPES = [
    (c, o, size, k, s)
    for c, o in CHANNELS for size in SIZES for k in KERNELS for s in STRIDES if c * size**2 <= 16 * 224**2
]  # fmt: skip
PARTS = {"step": "torch", "conv": "torch", "scalar": "micrograd", "load": None}


def median_ms(f, seconds):
    """The median time of f() in milliseconds, over at least 3 calls, after one that is not counted."""
    f()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


# ---- What is measured, in a child process: each function yields milliseconds -----------------------------------------


def step_engine(batches):
    import numpy as np

    from engine import Optimizer, cross_entropy
    from model import CNN

    for n in batches:
        x, y = np.random.randn(n, 1, 28, 28).astype(np.float32), np.random.randint(0, 10, n)
        model = CNN()
        optimizer = Optimizer(model.parameters())

        def step():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward_all()
            optimizer.update(lr=0.01)

        yield median_ms(step, 0.3)


def step_torch(batches):
    import torch
    from torch import nn

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    for n in batches:
        x, y = torch.randn(n, 1, 28, 28), torch.randint(0, 10, (n,))
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),  # in the order of model.py
            nn.Conv2d(4, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        yield median_ms(step, 0.3)


def conv_engine(step):
    import numpy as np

    from engine import Value, conv2d

    for c, o, size, k, s in SHAPES[:: step[0]]:
        x = np.random.randn(8, c, size, size).astype(np.float32)
        w = np.random.randn(o, c, k, k).astype(np.float32)
        yield median_ms(lambda: conv2d(Value(x), Value(w), None, s, k // 2).backward_all(), 0.1)


def conv_torch(step):
    import torch

    for c, o, size, k, s in SHAPES[:: step[0]]:
        x, w = torch.randn(8, c, size, size), torch.randn(o, c, k, k)

        def run():
            leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
            y = torch.nn.functional.conv2d(*leaves, None, s, k // 2)
            y.backward(torch.ones_like(y))

        yield median_ms(run, 0.1)


def scalar(Value, backward):
    """A 3-16-16-1 MLP of scalars with ReLU, and the squared error of four samples."""
    random.seed(0)
    sizes = (3, 16, 16, 1)
    layers = [
        [([Value(random.uniform(-1, 1)) for _ in range(n)], Value(0.0)) for _ in range(m)]
        for n, m in zip(sizes, sizes[1:])
    ]
    samples = [([2.0, 3.0, -1.0], 1.0), ([3.0, -1.0, 0.5], -1.0), ([0.5, 1.0, 1.0], -1.0), ([1.0, 1.0, -1.0], 1.0)]

    def run():
        loss = Value(0.0)
        for x, y in samples:
            for layer in layers:
                sums = [sum((wi * xi for wi, xi in zip(w, x)), b) for w, b in layer]
                x = [s.relu() for s in sums] if layer is not layers[-1] else sums
            loss = loss + (x[0] - y) ** 2
        backward(loss)

    yield median_ms(run, 1)


def scalar_engine():
    from engine import Value

    return scalar(Value, Value.backward_all)


def scalar_micrograd():
    from micrograd.engine import Value

    return scalar(Value, Value.backward)


def load_engine():
    start = time.perf_counter()
    from train_on_MNIST import DATA, load_mnist

    load_mnist(DATA)
    yield 1000 * (time.perf_counter() - start)


# ---- Taking turns, and the tables ------------------------------------------------------------------------------------


def child(name, *arguments, threads=None):
    """The milliseconds that the function of this name yields in a process of its own."""
    environment = dict(os.environ)
    if threads:
        environment.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(threads)))
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def compare(part, rounds, *arguments, threads=None):
    """Median milliseconds of the engine, of its peer, and the median of their ratios, for each measurement."""
    peer = PARTS[part]
    names = [f"{part}_engine"] + ([f"{part}_{peer}"] if peer and installed(peer) else [])
    runs = [[child(name, *arguments, threads=threads) for name in names] for _ in range(rounds)]
    for times in zip(*(zip(*run) for run in runs)):  # of one measurement: a tuple of one or two times for each round
        medians = [statistics.median(t) for t in zip(*times)]
        yield (*medians, statistics.median(a / b for a, b in times)) if len(names) == 2 else (*medians, None, None)


def installed(package):
    return importlib.util.find_spec(package) is not None


def row(name, engine, peer, ratio):
    print(f"{name:34}{engine:10.3f}" + (f"{peer:12.3f}{ratio:9.2f}" if peer is not None else ""), flush=True)


def head(title, part):
    peer = PARTS[part]
    print(f"\n{title + ', ms':34}{'engine':>10}" + (f"{peer:>12}{'ratio':>9}" if peer and installed(peer) else ""))
    if peer and not installed(peer):
        print(f"({peer} is not installed: pip install {peer})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="step, conv, scalar, load; all of them by default")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each library (%(default)s)")
    args = parser.parse_args()
    parts = args.parts or list(PARTS)
    if not set(parts) <= set(PARTS) or args.rounds < 1:
        parser.error(f"parts are {', '.join(PARTS)}, and rounds at least 1")

    versions = [f"{p} {metadata.version(p)}" for p in ("numpy", "torch", "micrograd") if installed(p)]
    print(f"Python {platform.python_version()}, {', '.join(versions)}, {os.cpu_count()} cores, {platform.machine()}")
    if "step" in parts:
        head("training step of the CNN", "step")
        for n, times in zip(BATCHES, compare("step", args.rounds, *BATCHES)):
            row(f"batch {n}", *times)
        for n, times in zip((32, 64), compare("step", args.rounds, 32, 64, threads=1)):
            row(f"batch {n}, one thread each", *times)
    if "conv" in parts:
        head("conv2d and both gradients", "conv")
        ratios, step = {}, 1 if args.parts else 7
        for (c, o, size, k, s), times in zip(SHAPES[::step], compare("conv", args.rounds, step)):
            name = f"{c:2} to {o:2}, {size:3} pixels, {k} x {k}, stride {s}"
            row(name, *times)
            ratios[name] = times[-1]
        if None not in ratios.values():
            worst = max(ratios, key=ratios.get)
            above = sum(ratio > 2.5 for ratio in ratios.values())
            print(f"geometric mean of the ratios {statistics.geometric_mean(ratios.values()):.2f}, "
                  f"{above} of {len(ratios)} above 2.5, worst {ratios[worst]:.2f}: {worst.strip()}")  # fmt: skip
        if not args.parts:
            print(f"(left out: {len(SHAPES) - len(ratios)} of {len(SHAPES)} shapes; `conv` measures all of them)")
    if "scalar" in parts:
        head("scalar MLP, forward and backward", "scalar")
        row("3-16-16-1, four samples", *next(compare("scalar", args.rounds)))
    if "load" in parts:
        head("start", "load")
        row("import, and load MNIST", *next(compare("load", args.rounds)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--child"]:
        name, *arguments = sys.argv[2:]
        print(json.dumps(list(globals()[name](*([list(map(int, arguments))] if arguments else [])))))
    else:
        main()
