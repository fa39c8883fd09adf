"""The conversation machine and all that it decides with. Nothing here awaits."""
