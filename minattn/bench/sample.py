"""Generation with a key-value cache: tokens per second, a whole block from one token, greedily; one
sequence, and several with softmax."""
from minattn import model, report_table
from minattn import spec as spelling
from minattn.attention import MECHANISMS
from minattn.bench import step
from minattn.bench.sides import Job, measure, number
from minattn.generate import recompute_reason

PRESET, BATCHES = "paper", (1, 16)
CASES = [*MECHANISMS, "affine[length=visible]", "energy[norm=prefix]"]


def suite(args, problems):
    """-> {"preset", "tokens", "rows": [{"attention", "batch", "sides"}, ...]}; prints a table.

    Both sides with one thread and with all, and the floor: minattn's products with the weights by
    themselves. What has to be computed anew for the whole prefix at every token is left out.
    """
    found, anew, tokens = [], [], step.spec(PRESET)["config"]["block_size"]
    print(f"\ngeneration, {PRESET}: {tokens} tokens after one, greedy, key-value cache, float32")
    lines = [("attention", "batch", "", "tokens/s", "quartiles",
              "minattn, with as many threads, is faster by")]
    for attention in spelling.variants("attention", args.attention) if args.attention else CASES:
        spec = step.spec(PRESET, attention)
        if why := recompute_reason(model.Config(**spec["config"])):
            anew.append(why)
            continue
        for batch in BATCHES if attention == "softmax" else BATCHES[:1]:
            row = _row(spec, attention, batch, args, problems)
            found.append(row)
            lines += [(attention, str(batch), label, number(side["tokens_per_second"], 0),
                       f"{side['q1']:.0f}-{side['q3']:.0f}",
                       "" if label.startswith("minattn") else number(side["speedup"]) + "x")
                      for label, side in row["sides"].items()]
    print(report_table.text(lines, right=(1, *range(3, len(lines[0])))))
    if anew:
        print("Left out, as the whole prefix is computed anew at every token:", "; ".join(anew))
    return {"preset": PRESET, "tokens": tokens, "rows": found}


def _row(spec, attention, batch, args, problems):
    tokens, jobs = spec["config"]["block_size"], {}
    job = {**spec, "settings": {**spec["settings"], "batch_size": batch}, "tokens": tokens}
    for n in sorted({1, args.threads}):
        threads = "1 thread" if n == 1 else f"{n} threads"
        jobs[f"minattn, {threads}"] = Job("bench.numpy_jobs", "sample", job, threads=n)
        jobs[f"floor, {threads}"] = Job("bench.numpy_jobs", "sample_floor", job, threads=n)
        if args.torch:
            jobs[f"PyTorch, {threads}"] = Job("bench.torch_jobs", "sample", job, threads=n)
    times = measure(f"generation, {attention}, batch {batch}", jobs, args, problems, tolerance=0,
                    unchecked=[label for label in jobs if label.startswith("floor")])
    found = {}
    for label, turns in times.turns.items():
        rates = {at: batch * tokens / t for at, t in times.seconds[label].items()}
        _, comma, threads = label.partition(",")
        faster = 1 / times.ratio(label, f"minattn{comma}{threads}")
        found[label] = {"tokens_per_second": rates["median"], "q1": rates["q3"], "q3": rates["q1"],
                        "speedup": faster, "turns": turns}
    return {"attention": attention, "batch": batch, "sides": found}
