"""The running kwbase: find it, capture its start command, stop it, start it, know when it is ready."""
