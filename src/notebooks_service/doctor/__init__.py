"""``notebooks doctor``: what is wrong with an installation, or with a GitLab one wants to connect."""
