"""How fast is it here? Training steps, long sequences, generation and whole runs, beside PyTorch
where it is installed.

    python -m minattn bench --preset laptop --attention softmax,energy[norm=prefix]

Every comparison is between equals: the same weights, the same batch, the same number of threads,
float32, dropout 0. Our side is the trainer's own step; PyTorch's is its fastest correct form
(torch_fast.py), eager and compiled; training steps also beside JAX, where it is installed and has
the mechanism (jax_jobs.py). The sides take turns, A B C A B C ..., each turn a few steps long, each
side in its own process (sides.py says why). What they compute is compared before anything is timed.
Times are medians over all steps, with quartiles; ratios are medians over the turns of the ratio
within a turn, so that a machine that slows down for a while slows both sides.

Run it on an idle machine: PyTorch's threads wait for each other at every operation, so a busy core
costs it more than it costs a thread that has a chunk of its own, and the ratios flatter us.
"""
import os

SUITES = {"step": "bench.step", "long": "bench.long", "sample": "bench.sample",
          "run": "bench.whole", "speedrun": "bench.speedrun", "growth": "bench.growth",
          "bias": "experiments.position_bias.benchmark"}
ALL = ("step", "long", "sample")
TORCH = "pip install torch==2.13.0"


def add_arguments(parser):
    """The options of `python -m minattn bench`."""
    default = " (default %(default)s)"
    parser.add_argument("--suite", default="step", choices=[*SUITES, "all"],
                        help="training steps, long sequences, generation, whole runs, "
                             "time to a loss, how a step grows, position-bias networks; "
                             "all: the first three"
                             + default)
    parser.add_argument("--preset", help="sizes of the step and run suites (default "
                                         "nano,laptop,paper), recipes of the speedrun (fast)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the speedrun" + default)
    parser.add_argument("--attention", help="mechanisms, with options: softmax,energy[norm=prefix] "
                                            "(default all)")
    parser.add_argument("--position", help="positions: learned,rope (default learned; rope and "
                                           "morlet with softmax)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1),
                        help="for every side" + default)
    parser.add_argument("--repeat", type=int, default=9,
                        help="number of measurements per framework" + default)
    parser.add_argument("--longest", type=int, default=16384,
                        help="maximum length in the long suite" + default)
    parser.add_argument("--json", metavar="FILE", help="write all measurements as JSON")
    parser.add_argument("--picture", metavar="FILE",
                        help="draw time and memory against length (long suite) or each size of "
                             "a model (growth suite)")
    parser.add_argument("--page", metavar="FILE",
                        help="put the tables of the growth suite into this Markdown page, in the "
                             "place of its first block of ```text")
    parser.add_argument("--no-compile", action="store_true",
                        help="skip torch.compile, which takes most of the time")


def run(args):
    """Measure and print -> exit code: 0, or 1 if the sides did not compute the same."""
    import importlib.util
    import json
    import sys

    from minattn import files

    suites = ALL if args.suite == "all" else (args.suite,)
    _check(args, suites)
    args.torch, args.jax = (importlib.util.find_spec(name) is not None for name in ("torch", "jax"))
    args.torch_kinds = ["eager", "compile"] if args.torch else []
    if args.no_compile:
        args.torch_kinds = args.torch_kinds[:1]
    about = machine(args.threads)
    print(describe(about))
    if about["load"] > 0.5:
        print("This machine is busy, which costs PyTorch more than it costs us: wait until it is "
              "idle.")
    if not args.torch:
        alone = "NumPy's times alone"
        if args.jax and "step" in suites:
            alone = "JAX's and NumPy's times"
        print(f"PyTorch is not installed: these are {alone}. For the comparison: {TORCH}")
    result, problems = {"machine": about}, []
    for suite in suites:
        module = importlib.import_module(f"minattn.{SUITES[suite]}")
        result[suite] = module.suite(args, problems)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if args.json:
        content = json.dumps({**result, "problems": problems}, indent=1)
        files.write(files.named("--json", args.json, "file"), content, follow=True)
    from minattn.bench import growth, long
    if args.picture:
        if args.suite == "growth":
            growth.picture(result["growth"], args.picture)
        else:
            long.picture(result["long"]["rows"], args.picture)
    if args.page:
        growth.fill(args.page, describe(about) + "\n" + result["growth"]["text"])
    return 1 if any("differ" in problem for problem in problems) else 0


def _check(args, suites):
    from minattn import checks
    from minattn.bench import growth, long, speedrun, step
    from minattn.errors import InputError
    for name in ("threads", "repeat", "seeds"):
        checks.number(f"--{name}", getattr(args, name), 1, integer=True)
    checks.number("--longest", args.longest, long.LENGTHS[0], integer=True)
    if args.picture and not {"long", "growth"} & set(suites):
        raise InputError("--picture draws the long or the growth suite: add --suite long.")
    if args.page:
        if "growth" not in suites:
            raise InputError("--page takes the tables of the growth suite: add --suite growth.")
        growth.page_parts(args.page)
    for file in filter(None, (args.json, args.picture)):
        if not os.path.isdir(os.path.dirname(os.path.abspath(file))) or os.path.isdir(file):
            raise InputError(f"cannot write {file!r}: not a file in a folder that exists.")
    speedrun.recipes(args) if "speedrun" in suites else step.cells(args)


def machine(threads):
    """What the numbers depend on, as a dict."""
    import importlib.metadata
    import platform

    import numpy as np
    from threadpoolctl import threadpool_info

    from minattn import __version__

    blas = [f"{pool['internal_api']} {pool['version']}" for pool in threadpool_info()
            if pool["user_api"] == "blas"]
    versions = dict.fromkeys(("torch", "jax"))
    for name in versions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    try:
        with open("/proc/cpuinfo") as info:
            line = next(line for line in info if line.startswith("model name"))
        cpu = line.partition(":")[2].strip()
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "load": load,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "numpy": np.__version__,
            "blas": ", ".join(dict.fromkeys(blas)), **versions, "minattn": __version__}


def describe(about):
    """One sentence of it."""
    libraries = [f"Python {about['python']}", f"NumPy {about['numpy']} ({about['blas']})"]
    libraries += [f"{title} {about[name]}" for name, title in (("torch", "PyTorch"), ("jax", "JAX"))
                  if about[name]]
    return (f"{about['cpu']}, {about['cores']} cores ({about['system']}), {about['threads']} "
            f"threads used; {', '.join(libraries)}, minattn {about['minattn']}; "
            f"load when it began: {about['load']}")
