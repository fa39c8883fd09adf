"""The wire protocol: its frames, and how they are read and written."""
