"""Stores and installed files: verified copies of them, and the way back."""
