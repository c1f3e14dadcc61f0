"""The embedded CI runner; speaks GitLab's runner protocol."""
