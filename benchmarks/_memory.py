# What a process holds in memory, for the benchmarks that tell it.
import sys


def memory(what):
    r"""In MiB, of this process: ``VmRSS`` now, ``VmHWM`` at most; not a number
    where the system does not say (only Linux does).
    """
    if sys.platform != 'linux':
        return float('nan')
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) for line in f
                    if line.startswith(f'{what}:')) / 1024


def forget_peak():
    r"""Lets ``VmHWM`` start anew: importing takes more than some methods."""
    if sys.platform == 'linux':
        with open('/proc/self/clear_refs', 'w') as f:
            f.write('5')
