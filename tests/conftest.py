"""Fixtures that more than one room's tests use."""

import signal

pytest_plugins = [
    "forge_fixtures",
    "runner_fixtures",
    "registry_fixtures",
    "stack_fixtures",
    "small_disk",
]

# A shell starts what runs in its background with SIGINT ignored, and every child inherits that; then
# nothing that a test interrupts would end.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
