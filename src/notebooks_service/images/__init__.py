"""Which image a commit gets and why; how environments of the ``local`` runtime are built and kept."""
