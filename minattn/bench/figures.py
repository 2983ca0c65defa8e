"""The picture of the long suite."""
from minattn import plots


def scaling(rows, path):
    """Time and memory of attention against the length of the sequence, as PNG.

    Each row: window (None for full), side, T, seconds {"q1", "median", "q3"}, extra_bytes.
    """
    fig, (left, right) = plots.figure(10, 4.2, ncols=2)
    sides = list(dict.fromkeys(row["side"] for row in rows))
    for window, side in dict.fromkeys((row["window"], row["side"]) for row in rows):
        mine = [row for row in rows if row["side"] == side and row["window"] == window]
        mine.sort(key=lambda row: row["T"])
        T = [row["T"] for row in mine]
        low, middle, high = ([row["seconds"][q] for row in mine] for q in ("q1", "median", "q3"))
        kind = "full" if window is None else f"window {window}"
        colour = plots.COLOURS[sides.index(side) % len(plots.COLOURS)]
        line = {"color": colour, "marker": "o", "ms": 4, "lw": 1.6, "label": f"{side}, {kind}",
                "ls": "-" if window is None else "--"}
        left.plot(T, middle, **line)
        left.fill_between(T, low, high, color=colour, alpha=0.15, lw=0)
        right.plot(T, [max(row["extra_bytes"], 1) / 1e6 for row in mine], **line)
    ticks = sorted({row["T"] for row in rows})
    left.set(ylabel="seconds, forward and backward")
    right.set(ylabel="MB beyond the inputs, at the peak")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="tokens in the sequence")
        ax.set_xticks(ticks, [str(T) for T in ticks])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    plots.save(fig, path)
