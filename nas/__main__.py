"""``python -m nas``: the same as the command ``nas``."""

import sys

from nas.cli import main

if __name__ == "__main__":
    sys.exit(main())
