"""Git between a server and the forge; the only place where a forge token meets a server's request."""
