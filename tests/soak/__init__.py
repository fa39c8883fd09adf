"""`make soak`: polite visitors are served while strangers do what they can."""
