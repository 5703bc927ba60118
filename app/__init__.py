"""The command line and what it shows. How threads of OpenMP wait is settled here, before anything loads them."""

import os

# They wait for each other by turning. Where another program uses a core, one of them is often not running while all
# others turn for it; after 1,000 turns they sleep, which costs nothing that can be measured on a free machine and
# nearly halves the time on a busy one (benchmarks/waiting.py). Who has settled it otherwise is left alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
