"""The exact planner: the optimum of a planning problem with its certificate."""
