"""Attention alone over long sequences, forward and backward: time and memory against T, and how fast they grow."""
import numpy as np

from minattn.bench.sides import compare, milliseconds, prepare, print_table, progress, ratio, sides, spread, take_turns

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEADS, HEAD_SIZE = 4, 32
WINDOWS = (None, 256)
MASK_UP_TO = 4096                  # tokens up to which PyTorch's window as a (T, T) mask is tried too
FIT_FROM = 2048                    # shorter ones are mostly overhead


def suite(args, torch, problems):
    """-> {"rows": [...], "exponents": [...]}; prints a table for full and for windowed attention."""
    rows, exponents = [], []
    for window in WINDOWS:
        lengths = [T for T in LENGTHS if T <= args.longest]
        part = _window(window, lengths, args, torch, problems)
        fits = [{"window": window, "side": side, "time": exponent(part, side, lambda row: row["seconds"]["median"]),
                 "memory": exponent(part, side, lambda row: row["extra_bytes"])}
                for side in dict.fromkeys(row["side"] for row in part)]
        _print(window, lengths, part, fits, args)
        rows += part
        exponents += fits
    return {"rows": rows, "exponents": exponents}


def _jobs(window, T, torch):
    """label -> (module, job) of every side that takes part at this length"""
    spec = {"T": T, "H": HEADS, "D": HEAD_SIZE, "window": window}
    jobs = {"minattn": ("numpy_jobs", ("attention", spec, 1))}
    for form in () if not torch else ("fused",) if window is None else ("blocks", "mask"):
        if form != "mask" or T <= MASK_UP_TO:
            label = "PyTorch" if form == "fused" else f"PyTorch {form}"
            jobs[label] = ("torch_jobs", ("attention", {**spec, "form": form}, 1))
    return jobs


def _window(window, lengths, args, torch, problems):
    """The rows of one kind of attention: each side at each length."""
    rows = []
    wanted = {label: (module, args.threads) for label, (module, _) in _jobs(window, lengths[0], torch).items()}
    with sides(wanted) as group:
        for T in lengths:
            progress(f"attention over {T} tokens, {_kind(window)}: time")
            jobs = {label: job for label, (_, job) in _jobs(window, T, torch).items() if label in group}
            answers = prepare(group, jobs, problems)
            compare(f"attention, {_kind(window)}, T = {T}", answers, 1e-3, problems)
            times = take_turns(group, answers, args.repeat, problems, most=30)
            rows += [{"window": window, "side": label, "T": T, "seconds": spread(turns), "turns": turns,
                      "ratio": ratio(times["minattn"], turns)} for label, turns in times.items()]
    progress(f"{_kind(window)}: memory")
    with sides(wanted, trace=True) as group:                    # fresh processes, one length after the other
        tiny = {label: job for label, (_, job) in _jobs(window, 64, torch).items()}
        before = {label: side("job", *tiny[label]) and side("memory") for label, side in group.items()}
        for row in sorted(rows, key=lambda row: row["T"]):
            label, (_, job) = row["side"], _jobs(window, row["T"], torch)[row["side"]]
            held, memory = group[label]("job", *job)["held"], group[label]("memory")
            row["resident_bytes"] = max(0, memory["peak"] - before[label]["peak"] - held)
            row["array_bytes"] = max(0, memory["arrays"] - before[label]["arrays"] - held)
            row["extra_bytes"] = row["array_bytes"] if label == "minattn" else row["resident_bytes"]
    return rows


def exponent(rows, side, measure):
    """The p of c T^p that fits best, in logarithms, over the lengths from FIT_FROM on; None for fewer than two."""
    mine = [row for row in rows if row["side"] == side and row["T"] >= FIT_FROM]
    points = [(row["T"], measure(row)) for row in mine if measure(row) > 0]
    return float(np.polyfit(*np.log(points).T, 1)[0]) if len(points) > 1 else None


def _kind(window):
    return "full causal" if window is None else f"window {window}"


def _print(window, lengths, rows, fits, args):
    print(f"\nattention, {_kind(window)}: forward and backward, {HEADS} heads of {HEAD_SIZE} channels, float32, "
          f"{args.threads} threads")
    labels = list(dict.fromkeys(row["side"] for row in rows))
    table = [("T", "", *(f"{label} ms" for label in labels), "/best", *(f"{label} MB" for label in labels))]
    for T in lengths:
        here = {row["side"]: row for row in rows if row["T"] == T}
        others = [row["ratio"] for label, row in here.items() if label != "minattn"]
        table.append((str(T), "", *(milliseconds(here[label]["seconds"]) if label in here else "-" for label in labels),
                      f"{max(others):.2f}" if others else "-",
                      *(f"{here[label]['extra_bytes'] / 1e6:.1f}" if label in here else "-" for label in labels)))
    print_table(table)
    print("MB: what it takes beyond q, k, v and dout, at its peak (minattn: arrays; PyTorch: growth of the process).")
    grown = [f"{fit['side']} time ~ T^{fit['time']:.2f}, memory ~ T^{fit['memory'] or 0:.2f}"
             for fit in fits if fit["time"]]
    if grown:
        print(f"Growth from T = {FIT_FROM}: {'; '.join(grown)}.")
