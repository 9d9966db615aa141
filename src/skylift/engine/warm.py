"""What takes long once and not again: drivers are imported, and loops are compiled, or loaded from where Numba has kept them.

`python -m skylift.engine.warm` compiles them all; scripts/setup does, so that no run has to. Measured: 7 s of CPU, afterwards 0.8 s.
"""

from __future__ import annotations

import atexit
import gc

from skylift import connectors
from skylift.engine import buckets, hashing


def warm_up(*urls: str) -> None:
    """Make a process ready to copy between these databases.

    What is there by then lives as long as the process: the garbage collector need not look through it again and again, which took
    3 % of a copy's CPU.
    """
    hashing.warm_up()
    connectors.load(*urls)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)                   # DuckDB's binding tells of what it still finds at the end as of a leak


if __name__ == "__main__":
    buckets.warm_up()
    warm_up("postgresql://", "mysql://")
