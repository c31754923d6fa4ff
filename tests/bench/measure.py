"""What the benchmarks share: the program under test, a machine in the same state before each run, and real content."""
import mmap, os, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GIB, MIB = 1 << 30, 1 << 20


def build():
    """The release build of racker, made if it is not there."""
    subprocess.run(['cargo', 'build', '--release', '--quiet', '-p', 'racker-cli', '--manifest-path', f'{ROOT}/Cargo.toml'], check=True)
    return os.path.join(os.environ.get('CARGO_TARGET_DIR', f'{ROOT}/target'), 'release/racker')


def options(parser):
    """What all benchmarks are told, but the number of runs."""
    parser.add_argument('--only', default='')
    parser.add_argument('--folder', default=os.path.join(os.environ.get('TMPDIR', '/tmp'), 'racker-bench'))
    parser.add_argument('--json')
    return parser


def run(command):
    """Wall seconds, processor seconds and peak memory in MiB of one run."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    if status:
        raise RuntimeError(f'{" ".join(command)}: {said.decode(errors="replace").strip()}')
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


# One page of each MiB that the last `prime` took.
held = None


def prime(takes):
    """Takes as much memory as a run does and gives it back: free memory that a hypervisor has taken away costs whoever
    touches it first more than the whole copy. One page of each MiB is held until the next time: a hypervisor asks for
    whole free blocks of 2 MiB only, and would take them away again while the run goes on."""
    global held
    if held is not None:
        held.close()
    held = mmap.mmap(-1, max(takes, MIB), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    piece = bytes(MIB)
    for at in range(0, len(held), MIB):
        held[at:at + MIB] = piece
    for at in range(0, len(held), MIB):
        held.madvise(mmap.MADV_DONTNEED, at + mmap.PAGESIZE, MIB - mmap.PAGESIZE)


def settle(*left, takes=2 * GIB):
    """Removes what an earlier run made, which would be written to the disk in the middle of the next one. A run that
    takes more of the machine's memory (files in it included) says how much."""
    for path in left:
        if os.path.exists(path):
            os.remove(path)
    os.sync()
    prime(takes)


def warm(path):
    """Reads a file into the host's memory."""
    subprocess.run(['cat', path], stdout=subprocess.DEVNULL, check=True)


def programs():
    """Paths and sizes of this machine's programs, libraries and texts. A few huge libraries would make one kind of data
    of it all, so they are left out."""
    for folder in ['/usr/bin', '/usr/sbin', '/usr/lib', '/usr/share']:
        for base, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                file = os.path.join(base, name)
                if os.path.islink(file) or not os.path.isfile(file):
                    continue
                size = os.path.getsize(file)
                if size <= 16 << 20:
                    yield file, size
