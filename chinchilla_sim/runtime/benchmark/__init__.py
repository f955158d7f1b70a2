"""Races and trials that `chinchilla bench` and `chinchilla validate` run."""
