"""Walls between people who share one machine: whose process may see and write what."""
