"""A comparison of families whose results are kept with the project, on whatever machine it goes on.

python -m benchmarks.families KEEP [--workers 2] DATA [options of ldm compare]

Cells that KEEP holds are brought back and not run again; then so many processes, at one thread each, share the rest;
then the page, its figures, the judge and each cell's result go to KEEP, with no more samples than the page shows. Give
`--out`: a folder of this machine. Stopped with Ctrl-C it keeps what is done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.startup import LDM
from ldm.store.weights import load_weights
from ldm.store.write import staged, write_weights
from train.compare.cells import RESULT, SAMPLES
from train.compare.lab import WISH
from train.compare.page import DATA, PAGE, SHEET, TABLE
from train.compare.reference import CLASSIFIER

JUDGE = Path(CLASSIFIER) / "model"


def bring_back(kept: Path, out: Path) -> int:
    """What an earlier machine has done, where this one has not; the number of cells."""
    if (kept / JUDGE).is_dir() and not (out / JUDGE).exists():
        shutil.copytree(kept / JUDGE, out / JUDGE)
    if (kept / WISH).is_file() and not (out / WISH).exists():
        shutil.copyfile(kept / WISH, out / WISH)
    brought = 0
    for result in sorted(kept.glob(f"cells/*/{RESULT}")):
        home = out / result.relative_to(kept).parent
        if not (home / RESULT).exists():
            home.mkdir(parents=True, exist_ok=True)
            for name in (SAMPLES, RESULT):  # the result last: it says that the cell is done
                if (result.parent / name).is_file():
                    shutil.copyfile(result.parent / name, home / name)
            brought += 1
    return brought


def keep(out: Path, kept: Path) -> None:
    """Samples are shown of the first seed, and no more of them than a sheet holds."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in (WISH, PAGE, DATA, TABLE):
        shutil.copyfile(out / name, kept / name)
    if (out / JUDGE).is_dir() and not (kept / JUDGE).exists():
        shutil.copytree(out / JUDGE, kept / JUDGE)
    for result in sorted(out.glob(f"cells/*/{RESULT}")):
        home = kept / result.relative_to(out).parent
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result, home / RESULT)
        if (samples := result.parent / SAMPLES).is_file() and home.name.endswith("-0"):
            shown = {name: tensor[:SHEET].contiguous() for name, tensor in load_weights(samples).items()}
            with staged(home / SAMPLES) as stage:
                write_weights(stage, shown, {})


def share(arguments: list[str], workers: int) -> None:
    """All processes give the same command; they share the cells among themselves."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([LDM, "compare", *arguments], env=environment) for _ in range(workers)]
    try:
        for one in running:
            one.wait()
    except KeyboardInterrupt:  # they have heard it too, and end at the next place that can be gone on from
        for one in running:
            one.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keep", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args, rest = parser.parse_known_args()
    out = Path(rest[rest.index("--out") + 1]) if "--out" in rest[:-1] else parser.error("--out is missing")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{bring_back(args.keep, out)} cells brought back", flush=True)
    share(rest, args.workers)
    if (out / PAGE).is_file():
        keep(out, args.keep)
        print(f"kept in {args.keep}: {len(list(args.keep.glob(f'cells/*/{RESULT}')))} cells", flush=True)


if __name__ == "__main__":
    main()
