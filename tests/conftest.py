"""Fixtures that more than one room's tests use."""

pytest_plugins = ["forge_fixtures", "runner_fixtures", "stack_fixtures"]
