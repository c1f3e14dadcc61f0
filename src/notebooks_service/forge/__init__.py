"""The embedded forge: the part of GitLab that a laptop and our tests need."""
