"""python -m minattn compare: several mechanisms, positions and seeds; honest losses, with error bars."""
import argparse
import sys

from minattn import checks, studies, train
from minattn.errors import InputError
from minattn.studies import executors, figures, plan, tables

EXAMPLE = """
  python -m minattn compare --attention softmax,sink,affine,energy --position learned,morlet --seeds 0-4
  python -m minattn compare --attention "softmax,energy[norm=sequence],affine[phi=sigmoid,length=visible]+gated,energy/softmax"
  python -m minattn compare --attention softmax --variant "two heads: n_head=2" --variant "wide: attention=energy[norm=key] n_embd=192"
"""


def add_arguments(parser):
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--attention", default="", metavar="LIST", help="mechanisms: options in brackets, +gated after, / between layers")
    parser.add_argument("--position", default="learned", metavar="LIST", help="positions, each with each mechanism (default %(default)s)")
    parser.add_argument("--variant", action="append", default=[], metavar='"NAME: FIELD=VALUE ..."', help="one more, any setting spelled out")
    parser.add_argument("--seeds", default="0-2", help="0-4 or 0,3,7 (default %(default)s)")
    parser.add_argument("--baseline", metavar="NAME", help="the variant to subtract (default: the first)")
    parser.add_argument("--out", default="runs/compare", help="folder of all runs, tables and pictures (default %(default)s)")
    parser.add_argument("--prefix-positions", type=int, default=512, metavar="N",
                        help="predictions that are also made from their own prefix alone (default %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="runs at a time, each a process (default: one for each core); 1: one after another in this process")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="of each run (default: the cores divided by the workers); the result does not depend on it")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="do the runs on a Dask cluster: tcp://host:8786")
    parser.add_argument("--data-dir", default="data", help="where corpora are kept (default %(default)s)")
    section = parser.add_argument_group("training and model, for all runs", "defaults come from the preset")
    section.add_argument("--preset", default="nano", help=f"one of {', '.join(train.PRESETS)} (default %(default)s)")
    for name, kind in plan.FIELDS.items():
        if name not in ("attention", "position"):
            flag = "--" + name.replace("_", "-")
            if kind is bool:
                section.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
            else:
                section.add_argument(flag, metavar=name.upper())


def run(args):
    """-> 0 every run finished, 1 some failed, 130 interrupted; InputError (exit code 2) for what cannot be run."""
    for name in ("workers", "threads"):
        if getattr(args, name) is not None:
            checks.number(f"--{name}", getattr(args, name), 1, integer=True)
    checks.number("--prefix-positions", args.prefix_positions, 1, integer=True)
    if args.out == "":
        raise InputError("--out must name a folder.")
    if args.scheduler is not None and args.workers is not None:
        raise InputError("--workers are on this machine; with --scheduler the cluster's workers do the runs: leave one of the two out.")
    given = {name: value if isinstance(value, bool) else plan.value_of(name, value) for name in plan.FIELDS
             if name not in ("attention", "position") and (value := getattr(args, name)) is not None}
    study = plan.make(args.out, attention=args.attention, position=args.position, variants=args.variant, seeds=args.seeds, preset=args.preset,
                      overrides=given, baseline=args.baseline, prefix_positions=args.prefix_positions, data_dir=args.data_dir)
    workers = args.workers or min(executors.cores(), len(study.jobs()))
    study = study._replace(threads=args.threads or (1 if args.scheduler else max(1, executors.cores() // workers)))
    try:
        with _executor(args.scheduler, workers) as executor:
            rows = studies.run(study, executor, report=lambda rows: tables.write(study, rows))
    except KeyboardInterrupt:
        print(f"stopped; what was done is kept in {args.out}: give the same command again to go on.", file=sys.stderr)
        return 130
    tables.write(study, rows)
    figures.draw(study, rows)
    print((study.folder / tables.TABLE).read_text(encoding="utf-8"))
    print(f"{study.folder}/ holds {tables.TABLE}, {tables.RESULTS}, {figures.CURVES}"
          + f", {figures.DIFFERENCES}" * (len(study.variants) > 1) + " and a folder for each run")
    if failed := sum(row["status"] == "failed" for row in rows):
        print(f"error: {failed} of {len(rows)} runs failed; {study.folder / tables.TABLE} says why. "
              "The same command tries them again and leaves the others.", file=sys.stderr)
        return 1
    return 0


def _executor(scheduler, workers):
    if scheduler is not None:
        return executors.dask(scheduler)
    return executors.Serial() if workers == 1 else executors.Processes(workers)
