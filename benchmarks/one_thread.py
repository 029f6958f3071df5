"""Limit NumPy's linear algebra to one thread. Must be imported before NumPy, which reads the limit when it is loaded.

Benchmarks run a process per core; with a thread per core in each, everything would take ten times as long.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
