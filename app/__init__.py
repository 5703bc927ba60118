"""The command line and what it shows. How threads of OpenMP wait is settled here, before anything loads them."""

import os

# They wait for each other by turning. Where another program uses a core, one of them is often not running while all
# others turn for it. After 1,000 turns they sleep: a fourth of the time on a busy machine, at the price of up to a
# fifth on a free one (benchmarks/waiting.py). Who has settled it otherwise is left alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
