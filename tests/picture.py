"""Draw the README's pictures in .github.

python tests/picture.py mnist    how the default run learns, and its most confident mistakes: takes as long as it
python tests/picture.py graph    the graph of a neuron, with Graphviz, whose program `dot` must be installed
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import Value, draw_graph  # noqa: E402
from model import CNN  # noqa: E402
from train_on_MNIST import DATA, load_mnist, mistakes  # noqa: E402

# Colours that can be read on white and on GitHub's dark page; where the page says that it is dark, lighter ones.
STYLE = """
    text { font: 24px system-ui, sans-serif; fill: #57606a }
    .strong { font-weight: 600; fill: #0969da }
    .line { fill: none; stroke: #0969da; stroke-width: 3 }
    .dot { fill: #0969da }
    .grid { stroke: #8c959f; stroke-opacity: .4 }
    .ink { fill: #24292f }
    @media (prefers-color-scheme: dark) {
      text { fill: #9da7b3 }
      .strong { fill: #58a6ff }
      .line { stroke: #58a6ff }
      .dot { fill: #58a6ff }
      .ink { fill: #e6edf3 }
    }
"""
WIDTH, HEIGHT = 720, 390
PIXEL = 3.5


def draw_training(accuracies, images, labels, predicted, confidences):
    """The SVG of accuracies, one for each epoch, and of misclassified images (n, 28, 28), normalised."""
    left, right, top, bottom = 92, WIDTH - 120, 24, 170
    low, high = np.floor(min(accuracies)), np.ceil(max(accuracies))
    xs = np.linspace(left, right, len(accuracies))
    ys = bottom - (np.array(accuracies) - low) / (high - low) * (bottom - top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"  <style>{STYLE}  </style>",
    ]
    for percent in (low, high):
        y = bottom - (percent - low) / (high - low) * (bottom - top)
        parts.append(f'  <path class="grid" d="M{left} {y:.0f}H{right}"/>')
        parts.append(text(left - 12, y + 8, f"{percent:.0f} %", anchor="end"))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
    parts.append(f'  <polyline class="line" points="{points}"/>')
    parts += [f'  <circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>' for x, y in zip(xs, ys)]
    parts.append(text(WIDTH - 4, ys[-1] + 8, f"{accuracies[-1]:.2f} %", anchor="end", css="strong"))

    step = WIDTH / len(images)
    for k, (image, label, digit, confidence) in enumerate(zip(images, labels, predicted, confidences)):
        centre, y = (k + 0.5) * step, 206
        parts.append(f'  <g class="ink" transform="translate({centre - 14 * PIXEL:.0f} {y}) scale({PIXEL})">')
        ink = (image - image.min()) / (image.max() - image.min())
        for shade in (0.25, 0.5, 0.75, 1):  # of grey
            pixels = zip(*np.nonzero((ink > shade - 0.25) & (ink <= shade)))
            path = "".join(f"M{column} {row}h1v1h-1z" for row, column in pixels)
            parts.append(f'    <path fill-opacity="{shade}" d="{path}"/>')
        parts.append("  </g>")
        parts.append(text(centre, y + 132, f"{label} → {digit}"))
        parts.append(text(centre, y + 162, f"{100 * confidence:.1f} %"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x, y, content, anchor="middle", css=""):
    css = f' class="{css}"' if css else ""
    return f'  <text{css} x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{content}</text>'


def training():
    """Run train_on_MNIST.py, show what it prints, and draw that."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        command = [sys.executable, "-u", str(ROOT / "train_on_MNIST.py"), "--save", str(weights)]
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        accuracies = [float(a) for a in re.findall(r"^epoch.*accuracy (\S+) %", "".join(lines), re.MULTILINE)]
        model = CNN().load(weights)
    _, _, X, y = load_mnist(DATA)
    wrong, predicted, confidences = mistakes(model, X, y)
    wrong = wrong[:6]
    return draw_training(accuracies, X[wrong, 0], y[wrong], predicted[wrong], confidences[wrong])


def graph():
    """The graph of relu(w x + b), in a grey that can be read on white and on dark pages."""
    w, x, b = Value(0.5, label="w"), Value(3.0, label="x"), Value(-1.0, label="b")
    y = (w * x + b).relu()
    y.label = "y"
    y.backward()
    colours = [f"-{what}=#768390" for what in ("Ncolor", "Nfontcolor", "Ecolor")]
    command = ["dot", "-Tsvg", "-Gbgcolor=transparent", "-Nfontname=system-ui, sans-serif", *colours]
    return subprocess.run(command, input=draw_graph(y), stdout=subprocess.PIPE, text=True, check=True).stdout


PICTURES = {"mnist": training, "graph": graph}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    name = parser.parse_args().picture
    path = ROOT / ".github" / f"{name}.svg"
    path.write_text(PICTURES[name](), encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
