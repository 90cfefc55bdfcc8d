"""Start and end a short process quickly."""

import atexit
import gc

ALLOCATIONS = 20_000  # containers made between two searches for unreachable cycles; Python's own is 700


def spare_collections() -> None:
    """Let Python search for unreachable cycles rarely, and not at all when the process ends.

    torch and MLflow make about a million objects when they are imported and none of them is ever garbage; to look
    through them again and again, and once more at the end, takes a third of a short stage's time. What reference
    counts free, tensors above all, is freed as before.
    """
    gc.set_threshold(ALLOCATIONS, 50, 1000)
    atexit.register(gc.freeze)  # what is frozen is not looked through when the interpreter ends
