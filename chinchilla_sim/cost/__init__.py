"""How long, how much, for one thing: pure formulas, each written once with its source."""
