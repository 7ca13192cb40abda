"""The tests run on busy machines, where BLAS with several threads is slow, and in checkouts that are read-only."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")  # pytest remembers what failed
