"""How Hypothesis runs here: no deadline per example, for a loaded machine is not a broken claim."""

from hypothesis import HealthCheck, settings

lenient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Decorates a property, or is a state machine's `settings`."""
