"""The benchmark: ratios taken in one run, against the bare engine and against peers."""
