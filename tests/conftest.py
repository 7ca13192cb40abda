"""BLAS gets one thread: on a busy machine its threads wait for each other, and the tests take five times as long."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported
