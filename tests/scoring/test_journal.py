"""The journal: one run's, whole lines only, and any file name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pipeline.scoring.gather import Item
from pipeline.scoring.journal import Journal, JournalError, Row, journal_state

SETTINGS = {"checkpoint": "abc"}


def test_a_journal_belongs_to_one_run(in_tmp: Path) -> None:
    journal = Journal(Path("j"), SETTINGS)
    with pytest.raises(JournalError, match="another run writes to the same output"):
        Journal(Path("j"), SETTINGS)
    journal.add([Row("a.png", error="x")], [None])
    journal.close(delete=False)
    with pytest.raises(JournalError, match="holds an unfinished run with another checkpoint or other settings"):
        Journal(Path("j"), {"checkpoint": "def"})
    journal = Journal(Path("j"), SETTINGS)
    assert journal.rows_of([Item("a.png")]) == [Row("a.png", error="x")]
    journal.close(delete=True)


def test_the_journal_takes_any_name(in_tmp: Path) -> None:
    journal = Journal(Path("j"), SETTINGS)
    row = Row("a\udcff\n.png", 1.0, 0.1, 3, 4)
    journal.add([row], [None])
    journal.close(delete=False)
    lines = Path("j").read_bytes().splitlines()
    assert [list(json.loads(line)) for line in lines] == [["journal", "settings"], ["rows", "states"]]
    journal = Journal(Path("j"), SETTINGS)
    assert journal.rows_of([Item(row.image)]) == [row]
    journal.close(delete=False)
    assert re.fullmatch(rb"[ -~\n]+", Path("j").read_bytes())


def test_a_line_that_a_kill_cut_off_is_forgotten(in_tmp: Path) -> None:
    journal = Journal(Path("j"), SETTINGS)
    for name in ("a.png", "b.png"):
        journal.add([Row(name, 1.0, 0.1, 3, 4)], [None])
    journal.close(delete=False)
    whole = Path("j").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        Path("j").write_bytes(whole[:cut])
        journal = Journal(Path("j"), SETTINGS)
        assert (journal.resumed, journal.rows_of([Item("b.png")])) == (1, None)
        journal.add([Row("b.png", 2.0, 0.2, 3, 4)], [None])  # goes on behind the last whole line
        journal.close(delete=False)
        journal = Journal(Path("j"), SETTINGS)
        assert journal.rows_of([Item("a.png"), Item("b.png")])[1].score == 2.0
        journal.close(delete=False)


def test_a_block_counts_while_its_files_are_as_they_were(in_tmp: Path) -> None:
    Path("a.png").write_bytes(b"1")
    journal = Journal(Path("j"), SETTINGS)
    journal.add([Row("a.png", 1.0)], [journal_state("a.png")])
    journal.close(delete=False)
    journal = Journal(Path("j"), SETTINGS)
    assert journal.rows_of([Item("a.png")]) == [Row("a.png", 1.0)]
    assert journal.rows_of([Item("a.png"), Item("new.png")]) is None
    Path("a.png").write_bytes(b"22")
    assert journal.rows_of([Item("a.png")]) is None
    journal.close(delete=True)
    assert not Path("j").exists()
    assert journal_state("none.png") is journal_state("a\0b") is None


def test_another_process_is_kept_out_and_a_killed_one_is_not(in_tmp: Path) -> None:
    code = "import sys; from pipeline.scoring.journal import Journal; from pathlib import Path\n"
    code += f"held = Journal(Path({str(in_tmp / 'j')!r}), {SETTINGS}); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match="another run writes to the same output; wait for it"):
            Journal(Path("j"), SETTINGS)
        other.kill()
    Journal(Path("j"), SETTINGS).close(delete=True)
