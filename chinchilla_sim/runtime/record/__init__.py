"""What a rank writes down while it runs: spans on one clock for all ranks, notes, signs of life."""
