"""Generation with a key-value cache: tokens per second, one sequence, a whole block from one token, greedily."""
from minattn.bench import step
from minattn.bench.sides import compare, prepare, print_table, progress, ratio, sides, spread, take_turns

PRESET = "paper"


def suite(args, torch, problems):
    """-> {"tokens", "sides", ...}; prints a table.

    One sequence gives several threads little to share: minattn uses one, PyTorch is tried with one and with all.
    """
    spec = {**step.spec(PRESET), "batch": 1}
    spec["tokens"] = tokens = spec["config"]["block_size"]
    progress(f"generation, {PRESET}")
    wanted = {"minattn": ("numpy_jobs", 1)}
    for n in sorted({1, args.threads}) if torch else ():
        wanted[f"PyTorch, {n} thread{'s' * (n > 1)}"] = ("torch_jobs", n)
    with sides(wanted) as group:
        answers = prepare(group, {label: ("sample", spec, 1) for label in wanted}, problems)
        compare("generation", answers, 0, problems)
        times = take_turns(group, answers, args.repeat, problems)
    rows = {label: {"tokens_per_second": tokens / spread(turns)["median"], "seconds": spread(turns), "turns": turns,
                    "speedup": 1 / ratio(times["minattn"], turns)} for label, turns in times.items()}
    print(f"\ngeneration, {PRESET}: {tokens} tokens from one, batch 1, greedy, key-value cache, float32")
    table = [("", "", "tokens/s", "quartiles", "minattn is faster by")]
    for label, row in rows.items():
        low, high = (tokens / row["seconds"][quartile] for quartile in ("q3", "q1"))
        speedup = "" if label == "minattn" else f"{row['speedup']:.2f}x"
        table.append((label, "", f"{row['tokens_per_second']:.0f}", f"{low:.0f}-{high:.0f}", speedup))
    print_table(table)
    return {"preset": PRESET, "batch": 1, "tokens": tokens, "sides": rows}
