"""`python -m chinchilla_sim.cli`."""

from chinchilla_sim.cli import main

main()
