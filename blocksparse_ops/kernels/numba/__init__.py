"""The Numba kernels, file by file the counterparts of those in `kernels/c`."""

import os
from functools import cache
from hashlib import sha256
from importlib.resources import files

# Whether each call makes sure that no kernel has written behind a table: for tests.
TABLES_ARE_CHECKED = os.environ.get("BLOCKSPARSE_CHECK_TABLES") == "1"


@cache
def version() -> int:
    """A number that follows from the sources: Numba's cache on disk serves no old code."""
    package = files("blocksparse_ops")
    folders = [package, package / "kernels", package / "kernels" / "numba", package / "link"]
    texts = [
        path.read_bytes()
        for folder in folders
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.name.endswith(".py")
    ]
    return int(sha256(b"".join(texts)).hexdigest()[:15], 16) ^ TABLES_ARE_CHECKED
