"""The order of things: plan, steps, journal, rollback and report."""
