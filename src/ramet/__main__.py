"""``python -m ramet``: the ``ramet`` command."""

import sys

from ramet._cli import main

if __name__ == "__main__":
    sys.exit(main())
