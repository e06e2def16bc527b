"""Suites and checkpoints of Great Expectations: frames in, verdict out.

A frame holds counts and sums per workspace, day and measure, never a row of data, so whatever
Great Expectations stores or shows of one can be shown to anybody. The package reads no store.
"""
