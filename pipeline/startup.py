"""Start and end a short process quickly, let it say a user's mistake in one line, and draw its bars where they help."""

import atexit
import gc
import os
import sys
from types import TracebackType

from pipeline.errors import AgiqaError
from pipeline.extras import advice

ALLOCATIONS = 20_000  # containers made between two searches for unreachable cycles; Python's own is 700


def spare_collections() -> None:
    """Let Python search for unreachable cycles rarely, and not at all when the process ends.

    torch and MLflow make about a million objects when they are imported and none of them is ever garbage; to look
    through them again and again, and once more at the end, takes a third of a short stage's time. What reference
    counts free, tensors above all, is freed as before.
    """
    gc.set_threshold(ALLOCATIONS, 50, 1000)
    atexit.register(gc.freeze)  # what is frozen is not looked through when the interpreter ends


def draw_bars_rarely_in_logs() -> None:
    """Let progress bars draw twice a second on a terminal, and every 30 s where standard error is a file or a pipe.

    Call before tqdm is imported: then it reads these variables, which a user may set to other seconds.
    """
    seconds = "0.5" if sys.stderr is not None and sys.stderr.isatty() else "30"
    os.environ.setdefault("TQDM_MININTERVAL", seconds)
    os.environ.setdefault("TQDM_MAXINTERVAL", str(max(10.0, float(seconds))))  # a bar left alone is drawn after this


def tell_mistakes_in_a_line() -> None:
    """Let a user's mistake end this process with one line on standard error and status 1, without a traceback."""
    ordinary = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        missing = advice(error) if isinstance(error, ImportError) else None
        if missing or isinstance(error, AgiqaError | OSError):
            sys.stderr.write(f"error: {missing or error}\n")
        else:
            ordinary(kind, error, trace)

    sys.excepthook = told


def quiet_pillow() -> None:
    """Silence Pillow's warning of large images: here a limit is an argument, and what passes it is refused."""
    import warnings

    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module="PIL")  # of odd but harmless metadata
