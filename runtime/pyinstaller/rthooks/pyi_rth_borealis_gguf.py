"""Runs in a frozen app before its own code: a process that was started as a child of it is that child and no more."""

from borealis_gguf.runtime.process.child_process import run_if_child

run_if_child()
del run_if_child
