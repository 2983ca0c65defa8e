"""Look inside a trained model: a table of its heads, and pictures of what they attend to.

    python -m minattn inspect runs/energy --sequences 16

A run folder of `minattn bias` works too.
"""
from minattn import checks, data, files, model, parallel, plots, report_table, runs, train
from minattn.cli import DEFAULT
from minattn.errors import InputError
from minattn.inspect import figures
from minattn.inspect.look import labels, look, table
from minattn.layers import embeddings

MOST = 256          # sequences at once: their maps are kept in memory
LEGEND = """\
entropy in nats; first token: mean weight on key 0; top sink: the key on which the largest share of
queries put more than 0.2"""


def add_arguments(parser):
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--text", metavar="FILE",
                        help="text to read (default: the validation part of the run's corpus)")
    parser.add_argument("--sequences", type=int, default=16,
                        help="number of sequences of block_size characters" + DEFAULT)
    parser.add_argument("--out", help="folder for the pictures (default RUN/inspect)")
    parser.add_argument("--data-dir", default="data", help="where corpora are kept" + DEFAULT)


def run(args):
    """Print the table, draw the pictures -> 0"""
    from minattn.experiments.position_bias import inside as bias_run
    checks.number("--sequences", args.sequences, 1, integer=True, high=MOST)
    run_folder = files.named("RUN", args.folder)
    folder = run_folder / "inspect" if args.out is None else files.named("--out", args.out)
    args.folder = run_folder
    with parallel.workers(1):
        if bias_run.is_one(args.folder):
            if args.text is not None:
                raise InputError(f"{args.folder} is a run of `minattn bias`, whose networks read "
                                 "no text: leave out --text.")
            about, inside = bias_run.look(args.folder, args.sequences)
            text, waves = "in-context recall", None
        else:
            about, text, inside, waves = _trained(args)
    runs.make_folder(folder, below=run_folder if args.out is None else None)
    B, _, T, _ = inside[0].weights.shape
    print(f"{args.folder}: {about}; {B} sequence{'' if B == 1 else 's'} of {T} tokens of {text}")
    print(report_table.text(table(inside)))
    print(LEGEND)
    with runs.lock(folder, wait=True):                     # the same command may run twice
        drawn = draw(inside, folder, waves)
    print(f"{folder}/ holds {', '.join(drawn) or 'no picture'}")
    return 0


def _trained(args):
    """A run of `minattn train` -> the model and the text in words, [Inside], waves or None"""
    run = runs.load(args.folder)
    config, (params, buffers, *_) = run.config, run.checkpoint
    encode = data.Vocabulary(run.vocabulary).encode
    if args.text is not None:
        what, ids = args.text, encode(data.load_corpus(args.text, data_dir=args.data_dir).text)
    else:
        what = f"{run.corpus['name']}, validation part"
        try:
            ids = data.split(encode(data.run_text(run.corpus, data_dir=args.data_dir)))[1]
        except InputError as error:
            raise InputError(f"{error} Name another text with --text.") from None
    blocks = data.blocks(ids, config.block_size)[0]
    inside = look(params, buffers, config, blocks[train.evenly(len(blocks), args.sequences)])
    about = f"{config.attention}, {config.position} positions, step {run.checkpoint.step}"
    return about, what, inside, waves(params, config)


def waves(params, config):
    """Positions made of waves, before and after training.

    -> two of (omega (n,), sigma (n,), codes (T, 2n)), or None without such an encoding: one whose
    module has a function `effective`.
    """
    found = [(row, options) for row, options in embeddings(config)
             if hasattr(row.module, "effective")]
    if not found:
        return None
    (row, options), both = found[0], []
    prefix, dtype = f"position.{row.name}.", params["wte.weight"].dtype
    for stage in (model.init(config, dtype=dtype)[0], params):
        arrays = {name.removeprefix(prefix): a for name, a in stage.items()
                  if name.startswith(prefix)}
        omega, sigma, _ = row.module.effective(arrays["log_omega"], arrays["log_sigma"],
                                               options["admissible"])
        codes, _ = row.module.embed(config.block_size, config.n_embd, dtype, 0,
                                    **{**options, **arrays})
        both.append((omega, sigma, codes))
    return both


def draw(inside, folder, waves=None):
    """Draw every picture that has something to show -> the names of the files"""
    pictures = [("maps.png", figures.maps, inside, 0), ("rollout.png", figures.rollout, inside),
                ("sinks.png", figures.sinks, inside)]
    if len(inside[0].weights) > 1:
        pictures.append(("maps_mean.png", figures.maps, inside, None))
    for what, picture in (("computed", figures.computed), ("learned", figures.learned)):
        if labels(inside, what):
            pictures.append((f"{what}.png", picture, inside))
    if waves:
        pictures.append(("wavelets.png", figures.wavelets, *waves))
    files.sweep(folder, [name for name, *_ in pictures])
    return [name for name, picture, *arguments in pictures
            if plots.attempt(picture, *arguments, folder / name)]
