"""The entry point `ldm`: quick to answer, and a Ctrl-C before it can ends it at once, without a traceback."""

import gc
import signal

# Objects made before the collector looks for cycles, and how often older ones are looked at. Imports make a million
# objects that stay: with Python's own numbers, looking through them takes three times as long (benchmarks/startup.py).
THRESHOLDS = (100_000, 50, 50)


def main() -> None:
    """What is imported here takes a fifth of a second, and longer on a busy machine."""
    gc.set_threshold(*THRESHOLDS)
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody means that it is ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":  # for launchers that start a module: accelerate launch -m app.entry
    main()
