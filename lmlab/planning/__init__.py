"""What a run will take before it is run: memory of each rank under each strategy, time, and rules of thumb. Nothing here trains."""
