"""What runs inside a server. Standard library only: it also runs in images that we did not build."""
