"""Turning a source tree into a stored artifact, once per key."""
