"""What the networks of a run attend to, for `minattn inspect`."""
from pathlib import Path

import numpy as np

from minattn import files, masks, runs
from minattn.errors import InputError
from minattn.experiments.position_bias import command, recall_network, recall_task, recall_training
from minattn.inspect.look import Inside


def is_one(folder):
    """Is this a run folder of `minattn bias`?"""
    try:
        files.read_json(Path(folder) / runs.CONFIG, {"network": dict})
        return True
    except InputError:
        return False


def look(folder, count):
    """The first seed, on `count` sequences about any item -> the network in words, [Inside]"""
    folder = Path(folder)
    settings, _ = command.read_config(folder)
    try:
        config = recall_network.Config(**settings["network"])
        task = recall_task.Task(**settings["task"])
    except (TypeError, InputError) as error:
        raise InputError(f"{folder / runs.CONFIG} is damaged: {error}.") from None
    numbers = [path.name.removeprefix("seed") for path in folder.glob("seed*")]
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    shapes, state = recall_network.parameter_shapes(config), None
    if seeds:
        state = recall_training.load(folder / f"seed{seeds[0]}", shapes)
    if state is None:
        raise InputError(f"{folder} has no trained network yet: let `minattn bias` finish a seed.")
    world = recall_task.world(task, seeds[0])
    x, _ = recall_task.training_batch(task, world, np.random.default_rng(0), count)
    visible = masks.visible(task.length, task.length, causal=config.mask != "none",
                            window=config.window, prefix=config.prefix or 0)
    inside = [Inside("softmax", w, visible, {}, {})
              for w in recall_network.weights(state.params, config, x)]
    about = f"{config.mask} mask, {config.position} positions, seed {seeds[0]}, step {state.step}"
    return about, inside
