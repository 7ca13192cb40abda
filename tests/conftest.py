"""The tests run with one BLAS thread, and in a checkout that is read-only."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported


def pytest_configure(config):
    # pytest cannot write its cache there, which is not a failure
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
