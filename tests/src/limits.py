#!/usr/bin/env python3
"""limits.py SECONDS PROGRAM ARGS…: runs a program and prints how it ended, in what time and memory.

One last line on standard error: exit status (-N: signal N; 'timeout'), seconds, largest resident set in KiB.
"""
import resource, subprocess, sys, time

start = time.monotonic()
child = subprocess.Popen(sys.argv[2:])
status = 'timeout'
try:
    status = child.wait(float(sys.argv[1]))
except subprocess.TimeoutExpired:
    child.kill()
    child.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(f'limits: {status} {time.monotonic() - start:.2f} {used}', file=sys.stderr)
