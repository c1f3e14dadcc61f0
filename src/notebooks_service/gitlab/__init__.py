"""What we ask a forge, over GitLab's HTTP API and nothing else."""
