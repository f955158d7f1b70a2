"""Why this plan, and what would change it."""
