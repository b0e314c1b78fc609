"""This machine: whether KWDB can be compiled on it and run on it."""
