"""A comparison of families whose results are kept with the project, on whatever machine it goes on.

python -m benchmarks.families KEEP --out FOLDER [--workers 2] DATA [options of ldm compare]

Cells that KEEP holds are brought back into FOLDER and not run again; then so many processes, at one thread each, share
the rest; then the page, its figures, the judge and each cell's result go to KEEP, with no more samples than the page
shows. Stopped with Ctrl-C or SIGTERM it keeps what is done. A budget of time buys each cell what the machine that it
runs on can do: cells of machines that are not alike are compared by time, and by nothing else.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from benchmarks.startup import LDM
from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from ldm.store.write import remove, staged, write_weights
from train.compare.cells import RESULT, SAMPLES
from train.compare.gallery import SHEET
from train.compare.lab import WISH, check_same, read_wish
from train.compare.page import DATA, PAGE, TABLE
from train.compare.reference import CLASSIFIER
from train.compare.scale import SCALE

JUDGE = Path(CLASSIFIER) / "model"


def bring_back(kept: Path, out: Path) -> int:
    """What an earlier machine has done, where this one has not; the number of cells."""
    if not (kept / WISH).is_file():
        return 0
    if (out / WISH).is_file():
        check_same(read_wish(out), read_wish(kept))
    else:
        _copy(kept / WISH, out / WISH)
    if not _copy(kept / JUDGE, out / JUDGE) and (kept / JUDGE).is_dir():
        check_judge(kept / JUDGE, out / JUDGE)
    return sum(_copy_cell(result.parent, out / result.relative_to(kept).parent) for result in _results(kept))


def check_judge(kept: Path, own: Path) -> None:
    """Cells that another judge looked at do not stand beside ours."""
    for one in kept.iterdir():
        if one.suffix == ".safetensors" and not filecmp.cmp(one, own / one.name, shallow=False):
            what, why = f"{own} is not the judge of {kept}.", "Distances by two judges cannot be compared."
            raise LdmError(Code.DIFFERENT, what, why, "Choose an --out that does not exist yet.")


def keep(out: Path, kept: Path) -> int:
    """Samples are shown of the first seed, and no more of them than a sheet holds. The number of cells there now."""
    for name in (WISH, PAGE, DATA, TABLE, SCALE):
        remove(kept / name)  # a newer one of the same comparison
        _copy(out / name, kept / name)
    _copy(out / JUDGE, kept / JUDGE)
    for result in _results(out):
        _copy_cell(result.parent, kept / result.relative_to(out).parent, shown=result.parent.name.endswith("-0"))
    return len(_results(kept))


def _results(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"cells/*/{RESULT}"))


def _copy_cell(cell: Path, goal: Path, shown: bool = True) -> bool:
    """The result last: it says that the cell is done. Whether it was not there."""
    if (goal / RESULT).exists():
        return False
    if shown and (cell / SAMPLES).is_file() and not (goal / SAMPLES).exists():
        few = {name: tensor[:SHEET].contiguous() for name, tensor in load_weights(cell / SAMPLES).items()}
        with staged(goal / SAMPLES) as stage:
            write_weights(stage, few, {})
    return _copy(cell / RESULT, goal / RESULT)


def _copy(source: Path, goal: Path) -> bool:
    """Whole or not at all; what is there stays. Whether it was not there."""
    if goal.exists() or not source.exists():
        return False
    with staged(goal) as stage:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, stage)
    return True


def share(arguments: list[str], workers: int) -> int:
    """All processes give the same command, and share the cells among themselves; the worst of their statuses. They end
    when this one is told to, at the next place that can be gone on from."""
    running = [
        subprocess.Popen(
            [LDM, "compare", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C of the terminal reaches us alone, and is passed on once
        )
        for _ in range(workers)
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for one in running:
            one.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return max(abs(one.wait()) for one in running)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args, rest = parser.parse_known_args()
    print(f"{bring_back(args.keep, args.out)} cells brought back", flush=True)
    status = share([*rest, "--out", str(args.out)], args.workers)
    if (args.out / PAGE).is_file():
        print(f"kept in {args.keep}: {keep(args.out, args.keep)} cells", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
