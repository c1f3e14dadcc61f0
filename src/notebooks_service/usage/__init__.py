"""Who used how much: what the hub records of servers, and the hours that are made of it."""
