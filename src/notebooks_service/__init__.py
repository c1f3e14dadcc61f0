"""An interactive environment for every commit of a GitLab project, one URL away."""

from importlib.metadata import version

__version__ = version("notebooks-service")
