"""The command ``nas``, also as ``python -m nas``."""

import sys


def main() -> int:
    """`nas.cli.main`; Ctrl-C is answered while Python still imports it, too."""
    try:
        from nas.cli import main as run
    except KeyboardInterrupt:
        print("nas: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
