"""``python -m notebooks_service …`` is ``notebooks …``."""

import sys

from notebooks_service.cli import main

if __name__ == "__main__":
    sys.exit(main())
