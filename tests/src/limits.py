#!/usr/bin/env python3
"""limits.py SECONDS PROGRAM ARGS…: runs a program and prints how it ended, in what time and memory.

One last line on standard error: exit status (-N: signal N; 'timeout'), seconds of processor time, largest resident set
in KiB. A busy machine lengthens the clock's time, not the processor's.
"""
import resource, subprocess, sys

child = subprocess.Popen(sys.argv[2:])
status = 'timeout'
try:
    status = child.wait(float(sys.argv[1]))
except subprocess.TimeoutExpired:
    child.kill()
    child.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f'limits: {status} {used.ru_utime + used.ru_stime:.2f} {used.ru_maxrss}', file=sys.stderr)
