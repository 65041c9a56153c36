"""Plan and run the built-in scenario `tiny` from Python: the README's five lines."""

import sys

import airtune as at

out = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"

scenario = at.load_scenario("tiny", ["rounds=3"])
record = at.run(scenario, out=out, replace=True)
last = record.rounds[-1]
print(f"test loss {last.eval_loss:.3f} after {last.elapsed_s:.1f} s of virtual time")
print(f"plan within {last.gap:.1e} of the proven optimum")
