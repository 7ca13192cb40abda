"""Importing the engine brings its public names, and works where malloc takes no settings."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import engine


def run(code):
    command = [sys.executable, "-B", "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=Path(engine.__file__).parent, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_star_import_brings_the_public_names_only():
    names = {}
    exec("from engine import *", names)  # noqa: S102
    del names["__builtins__"]
    assert sorted(names) == sorted(
        [
            "Value",
            "Operand",
            "as_value",
            "topological_order",
            "unbroadcast",
            "no_grad",
            "stack",
            "conv2d",
            "max_pooling",
        ]
        + ["cross_entropy", "Layer", "Neuron", "LinearLayer", "MLP", "Conv2dLayer", "Optimizer", "draw_graph"]
    )
    assert all(names[name] is getattr(engine, name) for name in names)


def test_every_public_name_of_the_engine_s_own_is_exported():
    own = {name for name, thing in vars(engine).items() if getattr(thing, "__module__", None) == "engine"}
    own = {
        name for name in own if not name.startswith("_") and isinstance(vars(engine)[name], (type, types.FunctionType))
    }
    assert {"Value", "conv2d", "Layer"} <= own <= set(engine.__all__)


@pytest.mark.parametrize(
    "load", ["lambda name: object()", "lambda name: len(name)", "lambda name: open('/no/such/library')"]
)
def test_engine_is_imported_where_malloc_takes_no_settings(load):
    code = f"import ctypes; ctypes.CDLL = {load}; from engine import Value; print((Value(2.0) * 3).data)"
    assert run(code) == (0, "6.0\n", "")
