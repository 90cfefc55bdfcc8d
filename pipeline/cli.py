"""The command `agiqa`: score, rank and compare images of your own, check a data set, bring in what others trained.

Output is a table where it goes to a terminal and CSV or JSON where it goes to a pipe or a file; progress and messages
go to standard error. Exit status: 0 all well, 1 some images have no score, the data have problems or a split leaks (all
of it is named), 2 the command could not be carried out, 130 interrupted.

argparse, and not a library for command lines: these few commands need no more, and it starts in no time. What costs
time to import is imported by the command that needs it.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.arguments import UNUSABLE, Help, Parser, near, number, place, positive
from pipeline.errors import AgiqaError
from pipeline.extras import advice
from pipeline.startup import draw_bars_rarely_in_logs, quiet_pillow, spare_collections

if TYPE_CHECKING:
    from pipeline.scoring.gather import Gathered, Item
    from pipeline.scoring.journal import Row
    from pipeline.scoring.scorer import Scorer

OK, SOME_FAILED, INTERRUPTED = 0, 1, 130  # and UNUSABLE

PATHS_HELP = (
    "files; folders (searched at every depth); patterns such as 'out/**/*.png'; a CSV with a column of paths; or - for "
    "a list on standard input"
)
EPILOG = """examples:
  agiqa score photos/                             a table of scores
  agiqa score photos/ --out scores.csv            a file; killed half way and started again, it goes on
  find . -name '*.png' | agiqa score - > s.csv    a list on standard input
  agiqa rank samples/ --top 3                     the best of each folder
  agiqa compare model_a/ model_b/                 which of two generators is better, and how surely
  agiqa init-data my_data/                        your images and tables become a data set of the study
  agiqa push hf:me/my-model                       the study's champion to the Hugging Face Hub, with a card
  agiqa audit-split --train a.csv --test b.csv    what a split that others published shares

Without --checkpoint, the champion of the study in this folder scores: the method with the best validation SRCC.
Where there is none, the model that comes with the repository does.
"""

# Commands that live in modules of their own, which are imported when they are asked for.
ELSEWHERE = {
    "serve": ("pipeline.serving.http", "score over HTTP, with a web page"),
    "export": ("pipeline.serving.program", "write a scorer as ONNX or torch.export, to run without this project"),
    "push": ("pipeline.study.push", "push a verified model to the Hugging Face Hub, with a card"),
    "cells": ("pipeline.study.cells", "list the parts of the study that workers can run apart"),
    "gather": ("pipeline.study.assembly", "bring what many workers made into this folder, training nothing"),
    "publish": ("pipeline.study.publish", "write a finished study's models with a card, ready to give away"),
    "init-data": ("pipeline.data.init_data", "make a data set of your own ready for the study: its CSV, its params"),
    "plan": ("pipeline.study.forecast", "say what the study in this folder will run, and about how long"),
    "audit-split": ("pipeline.data.leaks", "say which prompts and images a published split shares between its parts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    if argv is None:  # a process of its own
        spare_collections()
        draw_bars_rarely_in_logs()
    # Blocks beyond malloc's threshold go back to the system at once: a huge image, once scored, holds no memory.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        options = _parsed(arguments)
        quiet_pillow()  # after the words are read: help imports nothing
        return options.run(options)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except (AgiqaError, OSError) as error:
        _say(f"error: {error}")
        return UNUSABLE
    except ImportError as error:
        if (told := advice(error)) is None:
            raise
        _say(f"error: {told}")
        return UNUSABLE


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(arguments[0] if arguments else "")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in options.parser._actions for name in action.option_strings]
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{near(unknown[0].split('=')[0], known)}")
    if getattr(options, "out", None) is not None and getattr(options, "format", None) is not None:
        options.parser.error("--format is for standard output; the suffix of --out says what is written there")
    return options


def _say(text: str) -> None:
    sys.stderr.write(f"agiqa: {text}\n")


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        command: The command that will be parsed; of those ELSEWHERE, only this one's options are added, or all of
            them to complete.
    """
    parser = Parser(
        prog="agiqa",
        description="Score how good AI-generated images look, with a model of the AGIQA study.",
        epilog=EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, help_text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        description = help_text[0].upper() + help_text[1:] + "."
        added = commands.add_parser(name, help=help_text, description=description, formatter_class=Help)
        added.set_defaults(run=run, parser=added)
        return added

    score = add("score", "score images", run_score)
    score.add_argument("paths", nargs="*", metavar="PATH", help=PATHS_HELP)
    score.add_argument("--quality-map", type=Path, metavar="DIR", help="draw where each image is good or bad, into DIR")
    _add_output(score)
    _add_scorer(score)
    many = score.add_argument_group("millions of images (docs/scale.md)")
    many.add_argument("--engine", choices=["plain", "ray"], default="plain", help="ray: workers of a Ray cluster")
    many.add_argument("--workers", type=positive, metavar="N", help="default: one a GPU, or else one a machine")
    many.add_argument("--gpus-per-worker", type=number, metavar="X", help="such as 0.5; default: 1 if there are GPUs")
    many.add_argument("--address", metavar="WHERE", help="of a cluster, HOST:PORT or auto; default: this machine")
    many.add_argument("--per-file", type=positive, metavar="N", help="images a file of the output; default: 1024")

    rank = add("rank", "rank the images of each folder, or of each prompt, best first", run_rank)
    rank.add_argument("paths", nargs="*", metavar="PATH", help=PATHS_HELP)
    rank.add_argument(
        "--by", default="folder", metavar="COLUMN", help="rank within: folder (default), or a column of the CSV: prompt"
    )
    rank.add_argument("--top", type=positive, metavar="N", help="show the best N of each, and count the ties cut off")
    _add_output(rank)
    _add_scorer(rank)

    compare = add("compare", "compare two sets of images, such as the folders of two generators", run_compare)
    compare.add_argument("first", metavar="A", help="a folder, pattern or CSV")
    compare.add_argument("second", metavar="B", help="another; prompts, or files of equal names, are compared as pairs")
    compare.add_argument(
        "--by",
        metavar="WHAT",
        help="what tells prompts: folder, name, or a column of both CSVs; default: the column prompt, else folders "
        "below A and B if all images lie in such, else names",
    )
    _add_output(compare)
    _add_scorer(compare)

    check = add("check", "say what is wrong with a data set of your own, row by row", run_check)
    check.add_argument("data", type=Path, metavar="FOLDER_OR_CSV", help="a folder with images and one CSV, or that CSV")
    check.add_argument(
        "--scale", type=number, nargs=2, metavar=("LOW", "HIGH"), help="lowest and highest possible score, such as 1 5"
    )

    verify = add("verify", "compute every hash of a finished study anew, and say what no longer matches", run_verify)
    verify.add_argument("folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="default: this one")

    fetch = add("fetch-release", "download the checkpoint that the authors of DCMPLN released", run_fetch)
    fetch.add_argument("--out", type=Path, default=Path("released"), metavar="DIR", help="default: released")

    bring = add("import-release", "turn checkpoints of CLIP-AGIQA's published code into one that scores", run_import)
    bring.add_argument("files", nargs="+", type=Path, metavar="FILE", help="*_tar_best.pth and *_aux_best.pth")
    bring.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write (.safetensors)")
    bring.add_argument("--dataset", required=True, metavar="NAME", help="what it was trained on, such as agiqa3k")
    bring.add_argument(
        "--scale", type=number, nargs=2, required=True, metavar=("LOW", "HIGH"), help="of that data set's MOS: 0 5"
    )
    bring.add_argument("--backbone-file", type=Path, metavar="FILE", help="OpenAI's ViT-B-32.pt; else it is downloaded")

    completion = add("completion", "print what a shell reads to complete this command's words", run_completion)
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="yours")

    for name, (module, help_text) in ELSEWHERE.items():
        added = add(name, help_text, lambda options, module=module: importlib.import_module(module).run(options) or OK)
        if command in (name, "completion"):
            try:  # of a command whose extra is not installed, the name alone is completed
                importlib.import_module(module).add_arguments(added)
            except ImportError as error:
                if command == name or advice(error) is None:
                    raise
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import pipeline

        sys.stdout.write(f"agiqa {pipeline.__version__}\n")
        parser.exit()


def _add_scorer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="a checkpoint file; a model on the Hugging Face Hub (hf:OWNER/NAME[@REVISION]); an MLflow URI "
        "(models:/..., runs:/...); auto, the study's champion, or else the model that comes with the repository; "
        "auto:DATASET; or auto:DATASET:METHOD, the best of a method",
    )
    group.add_argument("--backbone-file", type=Path, metavar="FILE", help="the towers' weights, if they lie elsewhere")
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: a GPU if there is one")
    group.add_argument("--batch", type=positive, metavar="N", help="windows a forward pass; default: what suits")
    group.add_argument("--bfloat16", action="store_true", help="faster on GPUs; scores drift in the third decimal")
    group.add_argument("--int8", action="store_true", help="faster on CPUs; scores drift in the third decimal")
    group.add_argument("--level", type=positive, metavar="PERCENT", help="of the bands around scores; default: 90")
    group.add_argument("--threads", type=positive, metavar="N", help="of the CPU; default: all")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input and output")
    group.add_argument("--column", metavar="NAME", help="the CSV's column of paths; default: image, path, file or name")
    group.add_argument("--out", type=place, metavar="FILE", help="write to FILE (.csv, .json or .parquet) instead")
    group.add_argument("--format", choices=["table", "csv", "json"], help="default: table on a terminal, else csv")
    group.add_argument("--max-pixels", type=positive, metavar="N", help="largest image; default: 150 million pixels")


# Scoring


def _scorer(options: argparse.Namespace) -> "Scorer":
    from pipeline.scoring.output import warning
    from pipeline.scoring.scorer import load_scorer

    if options.threads:
        import torch  # imported here: costs a second, and not every method needs it

        torch.set_num_threads(options.threads)
    scorer = load_scorer(
        options.checkpoint,
        device=options.device,
        backbone_file=options.backbone_file,
        bfloat16=options.bfloat16,
        int8=options.int8,
        **({} if options.level is None else {"level": options.level}),
    )
    if told := warning(scorer):
        _say(told)
    return scorer


def _gather(options: argparse.Namespace, paths: Sequence[str], maps: Path | None = None) -> "Gathered":
    from pipeline.scoring.gather import gather, left_out

    paths = _paths(paths)
    found = gather(paths, column=options.column, listed=sys.stdin.buffer, maps=maps)
    for line in left_out(found):
        _say(line)
    if options.out is not None:
        from pipeline.scoring.output import check_target

        check_target(options.out, [path for path in paths if path != "-"])
    return found


def _paths(paths: Sequence[str]) -> Sequence[str]:
    return ["-"] if not paths and not sys.stdin.isatty() else paths


@contextmanager
def _scored(
    options: argparse.Namespace, scorer: "Scorer", items: Sequence["Item"], maps: Path | None = None
) -> Iterator[Iterator["Row"]]:
    """Hand out a row an image, under a progress bar, with a journal beside the output if there is one.

    The journal is deleted when the block ends well, with the output on disk.
    """
    from tqdm import tqdm

    from pipeline.data.decoding import MOST_PIXELS
    from pipeline.scoring.batch import score_files
    from pipeline.scoring.journal import Journal

    most = options.max_pixels or MOST_PIXELS
    journal = None
    if options.out is not None:
        settings = {
            "checkpoint": scorer.sha256,
            "device": scorer.device,
            "batch": options.batch,
            "bfloat16": options.bfloat16,
            "int8": options.int8,
            "level": scorer.level,
            "max_pixels": most,
            "maps": None if maps is None else str(maps.resolve()),
        }
        journal = Journal(options.out.with_name(options.out.name + ".journal"), settings)
        if journal.resumed:
            _say(f"going on where a broken run stopped: {journal.resumed} images are done")

    def rows() -> Iterator["Row"]:
        with tqdm(total=len(items), desc="scoring", unit="image", delay=1, dynamic_ncols=True) as bar:
            yield from score_files(
                scorer, items, journal=journal, batch=options.batch, maps=maps, max_pixels=most,
                threads=options.threads, advance=bar.update,
            )  # fmt: skip

    finished = False
    try:
        yield rows()
        finished = True
    finally:
        if journal is not None:
            journal.close(delete=finished)


def _done(rows: Sequence["Row"], scorer: "Scorer") -> int:
    from pipeline.scoring.output import summary

    _say(summary(rows, scorer))
    return SOME_FAILED if any(row.error for row in rows) else OK


def run_score(options: argparse.Namespace) -> int:
    """Score images."""
    from pipeline.scoring import cluster
    from pipeline.scoring.output import write_scores

    cluster.check_options(options)
    if options.engine == "ray":
        return SOME_FAILED if cluster.run(options, _paths(options.paths), _scorer, _say).failed else OK
    maps = options.quality_map
    found = _gather(options, options.paths, maps)
    scorer = _scorer(options)
    with _scored(options, scorer, found.items, maps) as coming:
        rows = write_scores(coming, scorer, out=options.out, form=options.format, with_maps=maps is not None)
    return _done(rows, scorer)


def run_rank(options: argparse.Namespace) -> int:
    """Rank images within their group."""
    from pipeline.data.decoding import printable
    from pipeline.scoring.gather import values_of
    from pipeline.scoring.output import write_ranks
    from pipeline.scoring.ranking import best, rank

    items = _gather(options, options.paths).items
    if options.by == "folder":
        groups = [os.path.dirname(item.path) or "." for item in items]
    else:
        groups = values_of(items, options.by)
    scorer = _scorer(options)
    with _scored(options, scorer, items) as coming:
        rows = list(coming)
        ranked, lost = rank(rows, groups), {}
        if options.top is not None:
            ranked, lost = best(ranked, options.top)
        write_ranks(ranked, scorer, out=options.out, form=options.format)
    for group, count in lost.items():
        _say(f"{printable(group)}: {count} more not shown, whose place is that of one shown")
    _name_failures(rows)
    return _done(rows, scorer)


def run_compare(options: argparse.Namespace) -> int:
    """Compare two sets of images."""
    from pipeline.scoring.compare import compare
    from pipeline.scoring.output import conclude, shows_table, write_comparison
    from pipeline.scoring.prompts import group_by_prompt
    from pipeline.study.generators import generator_error

    first, second = (_gather(options, [side]).items for side in (options.first, options.second))
    grouping = group_by_prompt(first, second, options.by)
    scorer = _scorer(options)
    with _scored(options, scorer, [*first, *second]) as coming:
        rows = list(coming)
        names, error = (options.first, options.second), generator_error(scorer.record, scorer.path)
        result = compare(rows[: len(first)], rows[len(first) :], names, grouping, error)
        write_comparison(result, scorer, out=options.out, form=options.format)
    _name_failures(rows)
    if not shows_table(options.out, options.format):
        _say(conclude(result, scorer))
    return _done(rows, scorer)


def _name_failures(rows: Sequence["Row"]) -> None:
    """Name every image without a score where the output has no row for it."""
    from pipeline.data.decoding import printable

    for row in rows:
        if row.error:
            _say(f"{printable(row.image)}: {row.error}")


# Data sets, and checkpoints that others published


def run_check(options: argparse.Namespace) -> int:
    """Say what is wrong with a data set."""
    from pipeline.data.prepare import check

    if not options.data.exists():
        raise FileNotFoundError(f"{options.data} does not exist")
    is_table = not options.data.is_dir()
    folder = options.data.parent if is_table else options.data
    labels, manifest = check("folder", folder, labels_file=options.data.name if is_table else None, scale=options.scale)
    for problem in labels.problems:
        sys.stdout.write(f"{problem.kind:16} {problem.image}: {problem.detail}\n")
    for note in labels.notes:
        _say(f"note: {note}")
    usable = f"{len(manifest)} images can be used, in {manifest['prompt_group'].nunique()} prompt groups"
    if labels.problems:
        _say(f"{len(labels.problems)} problems; {usable}")
        return SOME_FAILED
    low, high = manifest["mos_low"].iloc[0], manifest["mos_high"].iloc[0]
    quality = manifest["quality"]
    _say(f"no problem; {usable}; MOS {quality.min():g} to {quality.max():g} on the scale {low:g} to {high:g}")
    return OK


def run_verify(options: argparse.Namespace) -> int:
    """Say which files of a finished study are no longer those that it recorded."""
    from tqdm import tqdm

    from pipeline.study.verify import verify

    findings = list(tqdm(verify(options.folder), "checking", unit="hash", dynamic_ncols=True))
    faults = [finding for finding in findings if finding.fault]
    for finding in faults:
        sys.stdout.write(f"{finding.path} {finding.fault} (recorded by {finding.said_by})\n")
    _say(f"{len(findings)} recorded hashes, {len(faults)} no longer match" if faults else
         f"all {len(findings)} recorded hashes match")  # fmt: skip
    return SOME_FAILED if faults else OK


def run_fetch(options: argparse.Namespace) -> int:
    """Download the checkpoint that DCMPLN's authors released."""
    from pipeline.scoring.released import fetch_release

    _say(f"the release lies in {fetch_release(options.out)}")
    return OK


def run_import(options: argparse.Namespace) -> int:
    """Turn checkpoints that CLIP-AGIQA's code saved into one that scores."""
    from pipeline.model.loading import load_backbone
    from pipeline.scoring.released import import_release

    if options.backbone_file is None:
        backbone = load_backbone("ViT-B-32", pretrained="openai")
    else:
        backbone = load_backbone("ViT-B-32", file=options.backbone_file, origin="pretrained", activation="quickgelu")
    unused = import_release(options.files, options.out, backbone, dataset=options.dataset, scale=tuple(options.scale))
    if unused:
        _say(f"not needed, since this model makes them itself: {', '.join(unused)}")
    _say(f"wrote {options.out}: agiqa score PATH --checkpoint {options.out}")
    return OK


def run_completion(options: argparse.Namespace) -> int:
    """Print a shell's completion of this command."""
    from pipeline.completion import script

    sys.stdout.write(script(make_parser("completion"), options.shell))
    return OK


if __name__ == "__main__":
    sys.exit(main())
