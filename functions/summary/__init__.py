"""Writes what a session leaves behind: its summary, its end and its duration."""
