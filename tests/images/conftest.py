"""The scripted GitLab of ``tests/scripted_gitlab.py`` for this room's tests."""

from scripted_gitlab import elsewhere, gitlab

__all__ = ["elsewhere", "gitlab"]
