"""skylift: moves companies' databases to the cloud and proves that every row arrived."""

import ctypes
import os
from contextlib import suppress

# Memory that is freed goes back to the system, whatever was in it. Arrow's usual pool (mimalloc) keeps the pages of large values for
# later, and so does glibc, whose limit for what it gives back at once rises with every block that was freed: 100 MB and more after
# values of 50 MB, never the same. With these, a usual copy takes no more CPU (200,000 rows
# from SQLite to Parquet: 6 % less) and less memory (from PostgreSQL to Parquet: 310 MB instead of 380 to 440).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")      # read when pyarrow is loaded
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3                     # malloc.h
with suppress(AttributeError, TypeError, OSError):                # not the GNU C library
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)       # most columns of a usual batch are smaller, and used again
    ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 16 * 2**20)
