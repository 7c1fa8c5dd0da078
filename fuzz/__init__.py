"""Fuzzing of intake: made-up pushes, in their millions, and an independent opinion of each response.

`make fuzz INPUTS=10000000 SEED=7`, or `MINUTES=10`. The real WSGI app runs on a real journal with both signatures, in
several processes; the pushes of a run, and the clock that they see, are a function of its seed. `pushes.py` makes them,
`oracle.py` says what has to become of each, `trial.py` sends them and compares.
"""
