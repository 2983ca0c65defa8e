"""python -m minattn compare: several mechanisms, positions and seeds, with error bars."""
import argparse
import sys

from minattn import checks, engines, files, studies, train
from minattn.cli import DEFAULT, add_settings, given
from minattn.errors import InputError
from minattn.studies import executors, figures, plan, tables

# the settings that have one value for all runs
FOR_ALL = [name for name in plan.FIELDS if name not in ("attention", "position")]
EXAMPLE = """
  python -m minattn compare --attention softmax,sink,energy --position learned,morlet --seeds 0-4
  python -m minattn compare --attention "softmax,energy[norm=sequence],affine+gated,energy/softmax"
  python -m minattn compare --attention softmax --variant "two heads: n_head=2" \\
                            --variant "wide: attention=energy[norm=key] n_embd=192"
"""


def add_arguments(parser):
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--attention", default="", metavar="LIST",
        help="mechanisms, separated by commas; options in brackets, +gated, / between layers")
    add("--position", default="learned", metavar="LIST",
        help="position encodings, each combined with every mechanism" + DEFAULT)
    add("--variant", action="append", default=[], metavar='"NAME: FIELD=VALUE ..."',
        help="an additional variant with any settings")
    add("--seeds", default="0-2", help="0-4 or 0,3,7" + DEFAULT)
    add("--baseline", metavar="NAME",
        help="variant that differences are taken against (default: the first)")
    add("--out", default="runs/compare", help="folder of all runs, tables and pictures" + DEFAULT)
    add("--prefix-positions", type=int, default=512, metavar="N",
        help="number of predictions repeated from their prefix alone" + DEFAULT)
    add("--lengths", default="", metavar="LIST",
        help="contexts to evaluate the trained models at, such as 64,128,256 (default: none but "
             "the training's)")
    add("--workers", type=int, metavar="N",
        help="runs at a time, each a process (default: one for each core); 1: one after another in "
             "this process")
    add("--threads", type=int, metavar="N",
        help="of each run (default: the cores divided by the workers); the result does not depend "
             "on it")
    add("--scheduler", metavar="ADDRESS", help="run on a Dask cluster: tcp://host:8786")
    add("--data-dir", default="data", help="where corpora are kept" + DEFAULT)
    section = parser.add_argument_group("training and model, for all runs",
                                        "defaults come from the preset")
    section.add_argument("--preset", default="nano",
                         help=f"one of {', '.join(train.PRESETS)}" + DEFAULT)
    add_settings(section, FOR_ALL)


def run(args):
    """-> 0 every run finished, 1 some failed, 130 interrupted; InputError for what cannot be."""
    for name in ("workers", "threads"):
        if getattr(args, name) is not None:
            checks.number(f"--{name}", getattr(args, name), 1, integer=True)
    checks.number("--prefix-positions", args.prefix_positions, 1, integer=True)
    out, data_dir = files.named("--out", args.out), files.named("--data-dir", args.data_dir)
    if args.scheduler is not None and args.workers is not None:
        raise InputError("--workers are on this machine; with --scheduler the cluster's workers do "
                         "the runs: leave one of the two out.")
    study = plan.make(out, attention=args.attention, position=args.position,
                      variants=args.variant, seeds=args.seeds, preset=args.preset,
                      overrides=given(args, FOR_ALL), baseline=args.baseline,
                      prefix_positions=args.prefix_positions, lengths=args.lengths,
                      threads=args.threads,
                      data_dir=data_dir)
    if args.scheduler is None:
        for variant in study.variants:
            engines.check(variant.settings)
    workers = args.workers or min(executors.cores(), len(study.jobs()))
    if args.threads is None:
        threads = 1 if args.scheduler else max(1, executors.cores() // workers)
        study = study._replace(threads=threads)
    try:
        with _executor(args.scheduler, workers) as executor:
            rows = studies.run(study, executor, report=lambda rows: tables.write(study, rows))
    except KeyboardInterrupt:
        print(f"stopped; what was done is kept in {out}: give the same command again to go "
              "on.", file=sys.stderr)
        return 130
    try:
        page = tables.write(study, rows)
    except files.CannotWrite as error:
        error.way_out = (f"{'make room' if error.need else 'move it away'}; every run is kept, and "
                         "the same command writes the tables")
        raise
    pictures = figures.draw(study, rows)
    print(page)
    names = ", ".join([tables.TABLE, tables.RESULTS, *pictures])
    print(f"{study.folder}/ holds {names} and a folder for each run")
    if failed := sum(row["status"] == "failed" for row in rows):
        print(f"error: {failed} of {len(rows)} runs failed; {study.folder / tables.TABLE} says "
              "why. The same command tries them again and leaves the others.", file=sys.stderr)
        return 1
    return 0


def _executor(scheduler, workers):
    if scheduler is not None:
        return executors.dask(scheduler)
    return executors.Serial() if workers == 1 else executors.Processes(workers)
