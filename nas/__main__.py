"""The command ``nas``, also as ``python -m nas``."""

import io
import os
import signal
import sys

from nas.verbs import asks_for_help


def main() -> int:
    """`nas.cli.main`; Ctrl-C is answered while Python still imports it, too. Signals leave no unfinished files."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal cannot show ends no search
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if (answer := asks_for_help(sys.argv[1:])) is not None:
        print(answer)
        return 0
    try:
        from nas.cli import main as run
    except KeyboardInterrupt:
        print("nas: interrupted", file=sys.stderr)
        return 130
    code = run()
    for number in numbers:  # all is written: Python may end in peace
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _stop(*_: object) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes of torchrun the first one says it for all
        os.write(2, b"nas: stopped\n")  # a handler may not print in the middle of another print
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
