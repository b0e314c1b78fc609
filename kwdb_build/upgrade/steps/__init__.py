"""The steps of an upgrade, in order."""
