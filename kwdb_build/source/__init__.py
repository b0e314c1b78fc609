"""Fetching: exactly the commit that was asked for, with its pinned submodules."""
