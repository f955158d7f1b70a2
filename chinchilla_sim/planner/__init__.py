"""How to split and compress: plans, the programs they become, and the search for the best one.

what is decided    plan, plan_check, plan_file, signature; executable: what of it the runtime plays; slots: places for ranks
what it becomes    program, action, schedules/
what it costs      pricing/: pricer fills in prices, with task_seconds, exchanges, packing, recompute, holdings, sharing
what is possible   space/: configuration; screen, screen_links, estimate: bounds and estimates of all of it; bound: of one plan
which plans        drafting/: placement, cutting; scattered: pieces; free_space, stage_replicas: counts by stage
which is best      selection/: search, judge, improve, limits, front, candidate; served_search, served_judge: under load
why this one       explanation/: explain, alternative; codec_map: which codec at which bandwidth
accurate enough?   accuracy: the measured table; accuracy_rule: floor, steps to a target; published_accuracy.toml
under load         serving: what arrives, and what waits
peers' problems    peers/: PipeDream, Piper and dnn-partitioning in their own cost models
"""
