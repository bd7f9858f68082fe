"""Random problems for the C++ kernels, under a sanitizer: kernel_driver.cpp, compiled and run.

`python tests/kernel_fuzz.py --seconds 600` takes half a minute to compile it, unless that lies in
PyTensor's compile directory, and hands it what else is given: `--problems`, `--seed`, `--threads`,
`--fail-allocations`. With `--optimise` it takes four minutes to compile, and a fifth of the time a
problem. With `--machine aarch64` another machine is emulated, which takes Debian's packages
g++-aarch64-linux-gnu and qemu-user.
"""

import argparse
import os
import platform
import subprocess
from hashlib import sha256
from importlib import resources
from pathlib import Path

from pytensor import config

from blocksparse_ops.kernels.c import extension

DRIVER = Path(__file__).with_name("kernel_driver.cpp")
HEADERS = resources.files("blocksparse_ops.kernels.c")
IS_X86 = platform.machine() in ("x86_64", "AMD64")

SANITIZERS = ("address,undefined", "address", "thread")


# What is always inlined is so where nothing is optimised, too, each time with all that a sanitizer
# adds: a third of the time to compile it.
UNOPTIMISED = ("-O0", "-Dalways_inline=unused")


def build(path, vectors, sanitizer, flags=UNOPTIMISED):
    """Compile a program for this width of vectors, or for this machine, unless it is there."""
    about = [*flags, f"-m{vectors}" if vectors and IS_X86 else "-march=native"]
    about += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    return compiled(path, config.cxx, *about)


def build_for(machine):
    """Compile the driver for another machine, without what this one's sanitizers need."""
    return compiled(DRIVER, f"{machine}-linux-gnu-g++", "-O1", "-static")


def compiled(path, compiler, *flags):
    """What the compiler makes of a source file, unless it made it before."""
    command = [compiler, *extension.COMPILE_ARGS, "-g1", "-pthread", f"-I{HEADERS}", *flags]
    sources = [path, *path.parent.glob("kernel_*pp"), *HEADERS.iterdir()]
    about = (command, [source.read_bytes() for source in sources if source.is_file()])
    name = sha256(repr(about).encode()).hexdigest()[:32]
    made = Path(config.compiledir, f"{path.stem}_{name}")
    if not made.exists():
        # Compiled beside it, and moved as a whole.
        unfinished = made.with_suffix(f".{os.getpid()}")
        run = subprocess.run(
            [*command, str(path), "-o", str(unfinished)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        unfinished.replace(made)
    return made


def command_of(executable, sanitizer, *arguments):
    """What runs a driver: TSan needs addresses that are not drawn anew for each process."""
    fixed = ["setarch", "-R"] if sanitizer == "thread" else []
    return [*fixed, str(executable), *arguments]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="address,undefined")
    parser.add_argument("--vectors", help="as in g++'s -m, as sse2, avx2 or avx512f")
    parser.add_argument("--machine", help="to emulate: aarch64")
    parser.add_argument("--optimise", action="store_true", help="for long runs")
    options, others = parser.parse_known_args()
    if options.machine is not None:
        command = [f"qemu-{options.machine}", str(build_for(options.machine)), *others]
    else:
        flags = ("-O2",) if options.optimise else UNOPTIMISED
        executable = build(DRIVER, options.vectors, options.sanitizer, flags)
        command = command_of(executable, options.sanitizer, *others)
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
