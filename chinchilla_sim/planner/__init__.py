"""How to split and compress: plans, the programs they become, and the search for the best one."""
