"""What a server holds before and after: the baseline, and the suite that compares."""
