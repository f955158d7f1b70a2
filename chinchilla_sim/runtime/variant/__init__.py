"""Smaller variants of a model as torch modules."""
