"""What the lesson notebooks import: a text to work on, and checks that say whether an exercise is solved.

lesson_NN.py holds the checks of lessons/NN_*.ipynb; grading.py is how they judge.
"""


def text():
    """The text of the lessons: TinyShakespeare where it lies in data/ or MINATTN_DATA, else the built-in plays. -> data.Corpus"""
    from pathlib import Path

    from minattn import data
    here = Path(__file__).parents[2] / "data"
    return data.load_corpus("tinyshakespeare", data_dir=here, download=False, say=lambda message: None)
