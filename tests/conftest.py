import os

# Before NumPy is imported: on a busy machine BLAS's threads wait for each other, and the tests take five times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
