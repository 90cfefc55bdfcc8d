"""Draw docs/images/terminal.svg: what `agiqa score` prints for images of AGIQA-3K: `python docs/making/terminal.py`.

Reads the archive in the folder $AGIQA_DATA. The colours are the picture's own; the words are the command's.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

DOCS = Path(__file__).resolve().parents[1]
PICTURE = DOCS / "images" / "terminal.svg"
COMMAND = ["score", "photos", "--format", "table"]
SHOWN = "agiqa score photos/"
PHOTOS = (  # test images of the model that comes with the repository
    "AttnGAN_normal_003.jpg", "DALLE2_normal_003.jpg", "glide_normal_003.jpg", "midjourney_lowstep_003.jpg",
    "sd1.5_highcorr_187.jpg", "xl2.2_normal_005.jpg",
)  # fmt: skip
FALSE = "bad.jpg"  # a web page under an image's name


def photos(folder: Path, names: tuple[str, ...] = PHOTOS) -> None:
    """Make a folder with images of AGIQA-3K and a file that only looks like one."""
    folder.mkdir()
    with zipfile.ZipFile(Path(os.environ["AGIQA_DATA"]) / "agiqa3k" / "AGIQA-3K.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for name in names:
            (folder / name).write_bytes(archive.read(members[name]))
    (folder / FALSE).write_text("<!DOCTYPE html><title>Not found</title>")


def printed() -> list[str]:
    """Return the lines that the command prints."""
    with tempfile.TemporaryDirectory() as place:
        photos(Path(place) / "photos")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *COMMAND], cwd=place, capture_output=True, encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(DOCS.parent)},
        )  # fmt: skip
    if done.returncode != 1:  # one file is none
        raise RuntimeError(f"agiqa {' '.join(COMMAND)} ended with {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()


def drawn(lines: list[str]) -> str:
    """Return the picture. Its fonts are the reader's: a picture fetches nothing."""
    width = max(map(len, [*lines, SHOWN])) + 1
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.assemble(("$ ", "bold green"), (SHOWN, "bold")))
        for line in lines:
            text = Text(line)
            text.highlight_regex(r"█+[▏▎▍▌▋▊▉]?|[▏▎▍▌▋▊▉]", "bright_blue")
            text.highlight_regex(r"·+", "bright_black")
            text.highlight_regex(r"^ +\d+\.\d+", "bold")
            if line.strip().startswith("-"):
                text.stylize("yellow")
            console.print(text, soft_wrap=True)
        svg = console.export_svg(title="agiqa", theme=MONOKAI, unique_id="agiqa")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code", "DejaVu Sans Mono")


if __name__ == "__main__":
    PICTURE.write_text(drawn(printed()), encoding="utf-8")
