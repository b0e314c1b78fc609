"""kwdb-build: source-build upgrades for KWDB."""

__version__ = "0.1.0"
