"""Short-lived, stateless handlers; each folder is one function."""
