"""Everything that may be tried, and bounds and estimates of all of it at once."""
