"""Runs as folders that a person can read: where they lie, what they record, how they are shown. Imports no torch."""
