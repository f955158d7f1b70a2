"""What do you ask for: a scenario file, checked and turned into frozen values in base units."""
