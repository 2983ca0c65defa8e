"""python -m minattn check module:function --mechanism energy --framework torch --dtype bfloat16

Exit code 0: all good. 1: something is wrong with the function. 2: the check could not run (raised
as InputError). 130: interrupted by Ctrl-C or SIGTERM; the report is about the cases before.
"""
import contextlib
import re
import signal
import sys
import threading

from minattn import checks
from minattn.errors import InputError


def add_arguments(parser):
    parser.add_argument("target", nargs="*", default=[], metavar="[MECHANISM] TARGET",
                        help="module:function, file.py:function, or a module with forward and "
                             "backward")
    add_function(parser, "D=64,D=128", "the sizes B, H, Hkv, Tq, Tk, T, D, Dv; one may have "
                 "several values", "case")
    add_texts(
        parser,
        ("--mechanism", None, "the mechanism it implements, from `minattn list`: softmax (default),"
         " energy, ...; energy[norm=prefix] keeps an option fixed; or a position: rotary, morlet, "
         "decay"),
        ("--dtype", "float32", "float32 (default), float64, float16, bfloat16, or tf32 (float32 "
         "arrays, 10 bits of the fraction in matrix products)"),
        ("--lse BASE", None,
         "e or 2: it returns (out, lse), natural or to base 2: check both"),
        ("--conventions", "any", "ours: empty rows and alignment as in minattn, or it is wrong; "
         "default any"),
        ("--skip-file FILE", None, "lines: case-id-glob skip|xfail reason"),
        ("--junit FILE", None, "write the report as JUnit XML"))
    parser.add_argument("--quick", action="store_true", help="run a small selection of cases")
    parser.add_argument("--thorough", action="store_true",
                        help="combine every three settings, not only every two: some minutes")
    parser.add_argument("--case", action="append", metavar="GLOB",
                        help="only these cases: a family, or a pattern such as '*/W=2*'; "
                             "may be repeated")
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME[,NAME]",
                        help="what it does not support: an option, option=value, a family, dNAME, "
                             "gradients, repeat; reported as not covered")
    parser.add_argument("--repeat", type=int, default=1, metavar="N",
                        help="call each case N times more, to find races (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")


def add_function(parser, sizes, symbols, step):
    """What `check` and `causality` are told of somebody's function"""
    add_texts(
        parser,
        ("--framework", "numpy",
         "framework of its arrays: numpy (default), torch, jax, mlx, tinygrad"),
        ("--device", "cpu", "cpu (default), cuda, cuda:1, ..."),
        ("--backward", None, "module:function of its backward, if that is not part of the target"),
        (f"--sizes {sizes}", None, f"fix some of {symbols}"),
        ("--layout", "BHTD", "BTHD if its arrays are (B, T, H, D); default BHTD"),
        ("--json FILE", None, "write the report as JSON"))
    parser.add_argument("--time-limit", type=float, default=30.0, metavar="S",
                        help=f"seconds per {step} (default 30)")


def add_texts(parser, *options):
    """Options that take a text: ("--name METAVAR", default, help)"""
    for option, default, about in options:
        name, _, metavar = option.partition(" ")
        parser.add_argument(name, metavar=metavar or None, default=default, help=about)


def run(args):
    """Check the function -> exit code 0 or 1; InputError if that cannot be done."""
    from minattn.attention import MECHANISMS
    from minattn.validate import isolate
    from minattn.validate.check import MOST_SECONDS
    from minattn.validate.positions import ROWS
    if len(args.target) > 2 or len(args.target) == 2 and args.mechanism:
        raise InputError("name one function to check, and before it or with --mechanism what it "
                         "implements.")
    known = args.target and args.target[0].partition("[")[0] in {**MECHANISMS, **ROWS}
    if len(args.target) == 2 or known and not args.mechanism:
        args.mechanism, *args.target = args.target
    args.mechanism, args.target = args.mechanism or "softmax", (args.target or [None])[0]
    checks.number("--seed", args.seed, 0, integer=True)
    checks.number("--time-limit", args.time_limit, above=0, high=MOST_SECONDS)
    sizes = sizes_of(args.sizes)
    if args.target is None and not args.list:
        raise InputError("name the function to check, as module:function "
                         "(or --list to see the cases).")
    exclude = tuple(name for names in args.exclude for name in names.split(",") if name)
    same = ("mechanism", "target", "backward", "framework", "dtype", "device", "quick", "thorough",
            "seed", "skip_file", "time_limit", "layout", "lse", "conventions", "repeat")
    question = {name: getattr(args, name) for name in same}
    question.update(exclude=exclude, cases=args.case, sizes=sizes)
    if args.list:
        return _list(isolate.planned(question))
    with terminated_as_interrupted():
        report = isolate.check(question, progress=sys.stderr.isatty())
    print(report)
    for path, write in ((args.json, report.to_json), (args.junit, report.to_junit)):
        if path is not None:
            write(path)
    return 130 if report.interrupted else 0 if report.ok else 1


@contextlib.contextmanager
def terminated_as_interrupted():
    """SIGTERM does what Ctrl-C does: it raises KeyboardInterrupt."""
    takes = (threading.current_thread() is threading.main_thread()
             and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    if takes:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if takes:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def sizes_of(text):
    """"D=64,D=128,Dv=64" -> {"D": (64, 128), "Dv": 64}"""
    sizes = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", number):
            raise InputError(f"--sizes is written as D=64,Dv=64; got {checks.shown(text)}.")
        sizes.setdefault(name.strip(), []).append(int(number))
    return {name: tuple(n) if len(n) > 1 else n[0] for name, n in sizes.items()} or None


def _list(chosen):
    """Each case with what it asks for: the words that --exclude knows."""
    for case in chosen:
        asks = ", ".join(sorted(f for f in case.flags if f.split("=")[0] not in case.flags - {f}))
        print(f"{case.id:<43} {'quick' if case.quick else '':<7}{asks}".rstrip())
    return 0
