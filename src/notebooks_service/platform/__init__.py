"""``notebooks up``: starts hub, proxy, service, forge and runner as real processes, watches and stops them."""
