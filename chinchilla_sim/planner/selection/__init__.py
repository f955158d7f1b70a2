"""The search: simulated candidates, local search, limits, trade-offs."""
