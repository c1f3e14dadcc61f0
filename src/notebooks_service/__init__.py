"""An interactive environment for every commit of a GitLab project, one URL away."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:  # or mypy would take every name for one of ours

    def __getattr__(name: str) -> str:
        """``__version__`` when it is asked for: to look it up is half of a short command's start."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("notebooks-service")
