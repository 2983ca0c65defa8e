"""Generation with a key-value cache: tokens per second, a whole block from one token, greedily; one sequence, and several."""
from minattn.bench import step
from minattn.bench.sides import compare, prepare, print_table, progress, ratio, sides, spread, take_turns

PRESET, BATCHES = "paper", (1, 16)


def suite(args, torch, problems):
    """-> {"preset", "tokens", "batches": [{"batch", "sides"}, ...]}; prints a table. Both sides with one thread and with all."""
    spec = step.spec(PRESET)
    spec["tokens"] = tokens = spec["config"]["block_size"]
    wanted = {f"{who}, {n} thread{'s' * (n > 1)}": (module, n) for n in sorted({1, args.threads})
              for who, module in (("minattn", "numpy_jobs"), ("PyTorch", "torch_jobs")) if torch or who == "minattn"}
    found = []
    print(f"\ngeneration, {PRESET}: {tokens} tokens after one, greedy, key-value cache, float32")
    table = [("batch", "", "tokens/s", "quartiles", "minattn, with as many threads, is faster by")]
    for batch in BATCHES:
        progress(f"generation, {PRESET}, batch {batch}")
        with sides(wanted) as group:
            answers = prepare(group, {label: ("sample", {**spec, "batch": batch}, 1) for label in wanted}, problems)
            compare(f"generation, batch {batch}", answers, 0, problems)
            times = take_turns(group, answers, args.repeat, problems)
        rate = {label: {at: batch * tokens / seconds for at, seconds in spread(turns).items()} for label, turns in times.items()}
        faster = {label: 1 / ratio(times[label.replace("PyTorch", "minattn")], turns) for label, turns in times.items()}
        table += [(str(batch), label, f"{rate[label]['median']:.0f}", f"{rate[label]['q3']:.0f}-{rate[label]['q1']:.0f}",
                   "" if label.startswith("minattn") else f"{faster[label]:.2f}x") for label in times]
        found.append({"batch": batch, "sides": {label: {"tokens_per_second": rate[label]["median"], "speedup": faster[label],
                                                        "turns": turns} for label, turns in times.items()}})
    print_table(table)
    return {"preset": PRESET, "tokens": tokens, "batches": found}
