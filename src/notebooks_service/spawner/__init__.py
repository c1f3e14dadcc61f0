"""What lives inside the hub: the launch, its record, fresh forge tokens, the runtimes."""
