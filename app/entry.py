"""The entry point `ldm`: a Ctrl-C before the program is there to answer ends it at once, without a traceback."""

import signal


def main() -> None:
    """What is imported here takes a fifth of a second, and longer on a busy machine."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody means that it is ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
