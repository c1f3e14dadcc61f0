"""Starts a Python kernel in an image whose Python has no ipykernel: with the packages that were carried along,
``last`` so that all of the image's own go before them, or ``first``; runs the launcher. ``serve.py`` names it in a
kernelspec. Standard library only, Python 3.8 and newer.

    python kernel_start.py last|first DIRECTORY_OF_PACKAGES -f CONNECTION_FILE
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    place, packages = sys.argv.pop(1), sys.argv.pop(1)
    # As `python -m` has it: the person's own directory first, not the one of this file.
    sys.path[0] = ""
    sys.path.insert(1 if place == "first" else len(sys.path), packages)
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
