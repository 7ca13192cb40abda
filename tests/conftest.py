import os

# Before NumPy is imported: on a busy machine BLAS's threads wait for each other, and small products take ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
