"""Seconds and bytes of a plan's stages, from the formulas in `cost/`."""
