"""What survives: the journal and the hand-off on their way to the store, their copies on disk, the sign of life."""
