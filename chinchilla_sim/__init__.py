"""Plan, simulate, run and check the split and compression of a neural network over several devices.

The tour: `scenario/` (what do you ask for?), `graph/` (what must be computed?), `cluster/` (what can it run on?),
`cost/` (how long, how much, one thing?), `planner/` (how to split and compress?), `simulator/` (what would happen?),
`runtime/` (do it for real), `validation/` (was it right?), `report/` (how to show it?). `setting.py` makes a
scenario ready, `running.py` runs a plan, and `workflow.py` is the whole program on one page.
"""
