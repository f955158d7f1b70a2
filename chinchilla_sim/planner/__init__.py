"""How to split and compress: plans, the programs they become, and the search for the best one.

what is decided    plan, plan_check, plan_file; executable: what of it the runtime plays
what it becomes    program, action, schedules/; sharing: weights that several stages use
what it costs      pricing fills in prices, with task_seconds, exchanges, packing, recompute, holdings
what is possible   configuration: the space; screen, screen_links: bounds and estimates of all of it; bound: of one plan
which plans        drafts: slots, placement, cutting (partition); scattered: pieces; free_space, stage_replicas: counts by stage
which is best      search, judge, improve, limits, front, candidate; explain, alternative: why this one; codec_map
accurate enough?   accuracy: the measured table; accuracy_rule: floor, steps to a target; published_accuracy.toml
under load         served_search, served_judge, serving
peers' problems    ideals, replicated_stages, stage_choices, tensor_stages, assignment, assignment_programme, free_assignment
"""
