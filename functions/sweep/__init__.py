"""Ends what dead containers left open: it finds their sessions and hands them off."""
