"""Keep NumPy's linear algebra to one thread. To be imported before NumPy: its threads are counted when it is loaded.

A benchmark has a process for each core; with a thread for each core in each, all takes ten times as long.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
