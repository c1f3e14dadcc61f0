"""Inside the hub: the launch, its record, fresh forge tokens and the runtimes beneath.

``configure(c)`` is what an administrator's ``jupyterhub_config.py`` calls, last.
"""
