"""python -m minattn"""
import os
import signal
import sys


def run():
    """The command line as a process of its own -> exit code.

    While modules load there is nothing to lose: Ctrl-C ends the process at once, since an
    interrupted import may end in any error.
    """
    takes = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if takes:
        signal.signal(signal.SIGINT, _at_once)
    from minattn.cli import main
    code = main(loaded=_interrupts if takes else None)
    if takes:
        signal.signal(signal.SIGINT, _at_once)           # all is done and said
    return code


def _at_once(*_):
    os.write(2, b"interrupted\n")
    os._exit(130)


def _interrupts():
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(run())
