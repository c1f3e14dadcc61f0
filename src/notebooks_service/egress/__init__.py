"""What lets hostile code reach some of the outside: the runner uses it for jobs, ``notebooks up`` for servers."""
