"""Generation with a key-value cache: tokens per second, a whole block from one token, greedily; one
sequence, and several."""
from minattn import report_table
from minattn.bench import step
from minattn.bench.sides import Job, measure, number

PRESET, BATCHES = "paper", (1, 16)


def suite(args, problems):
    """-> {"preset", "tokens", "batches": [{"batch", "sides"}, ...]}; prints a table.

    Both sides with one thread and with all.
    """
    spec, found = step.spec(PRESET), []
    tokens = spec["config"]["block_size"]
    print(f"\ngeneration, {PRESET}: {tokens} tokens after one, greedy, key-value cache, float32")
    lines = [("batch", "", "tokens/s", "quartiles", "minattn, with as many threads, is faster by")]
    for batch in BATCHES:
        job = {**spec, "settings": {**spec["settings"], "batch_size": batch}, "tokens": tokens}
        jobs = {}
        for n in sorted({1, args.threads}):
            threads = "1 thread" if n == 1 else f"{n} threads"
            jobs[f"minattn, {threads}"] = Job("bench.numpy_jobs", "sample", job, threads=n)
            if args.torch:
                jobs[f"PyTorch, {threads}"] = Job("bench.torch_jobs", "sample", job, threads=n)
        times = measure(f"generation, {PRESET}, batch {batch}", jobs, args, problems, tolerance=0)
        rows = {}
        for label, turns in times.turns.items():
            rate = {at: batch * tokens / t for at, t in times.seconds[label].items()}
            faster = 1 / times.ratio(label, label.replace("PyTorch", "minattn"))
            rows[label] = {"tokens_per_second": rate["median"], "speedup": faster, "turns": turns}
            shown = "" if label.startswith("minattn") else number(faster) + "x"
            lines.append((str(batch), label, number(rate["median"], 0),
                          f"{rate['q3']:.0f}-{rate['q1']:.0f}", shown))
        found.append({"batch": batch, "sides": rows})
    print(report_table.text(lines, right=range(2, len(lines[0]))))
    return {"preset": PRESET, "tokens": tokens, "batches": found}
