"""`moectl tune`: which engine settings serve a workload best, measured on the live engine.

space      which settings may be tried, and which combinations are legal
workload   what is served: drawn from a seed, or read from a file
measure    the live engine serves it once
objective  what is better, and when a winner really beats the settings in force
study      the search: kept on disk, resumable, pruned (Optuna)
patch      the winner as a spec that `moectl apply` takes
calibrate  the planner's time model learns from what was measured
session    puts them together
"""
