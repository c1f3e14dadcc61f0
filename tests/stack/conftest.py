"""Gives the whole-stack tests their fixtures; what they are is in ``tests/stack_fixtures.py``."""

from stack_fixtures import new_stack, stack

__all__ = ["new_stack", "stack"]
