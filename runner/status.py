"""Exit statuses of the commands."""

DONE = 0
FAILED = 1  # the run; in a multirun at least one job
WRONG = 2  # the configuration, or what a tool is given: nothing was written
GATED = 3  # done, and gate=POLICY.yaml not passed; in a multirun by at least one job
