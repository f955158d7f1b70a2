"""From a configuration to plans: cuts into stages, and places for them."""
