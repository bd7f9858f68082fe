"""What tells each of PyTensor's backends about the ops. Importing this imports no backend."""

from blocksparse_ops.link import lazy as lazy
