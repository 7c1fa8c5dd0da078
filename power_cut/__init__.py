"""Power cuts: what the disk may be afterwards, built from a recording, thousands of times from one run.

`make power-cut STATES=5000 SEED=7`. A preloaded library records every change that the receiver's processes make to
files, in one order. A model of the disk replays it up to a cut, and loses of the rest what a file system may lose. From
each such state the receiver must recover with every event that got 200.

| file | what lives there |
|---|---|
| `recorder.c` | the preloaded library |
| `recording.py` | compiles it, and reads what it has recorded |
| `disk.py` | the model of the disk, and what each file system may lose |
| `machine.py` | a receiver on a disk that is recorded, and its driver, which knows what got 200 |
| `lives.py` | what happens to a receiver while it is recorded |
| `oracle.py` | what must be true of a disk after a cut, and once the receiver has recovered from it |
| `trial.py` | one run from recording to verdict |
"""
