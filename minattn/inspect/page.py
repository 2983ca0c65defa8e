"""The page of `minattn explore`, drawn with Bokeh: what explore.py computes, for each model."""
import html
import socket
import webbrowser

import numpy as np
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    Div,
    Legend,
    LegendItem,
    LinearColorMapper,
    Select,
    TextAreaInput,
)
from bokeh.plotting import figure
from bokeh.server.server import Server
from jinja2 import Template
from matplotlib import colormaps
from matplotlib.colors import to_hex

from minattn import plots
from minattn.browser import has_display
from minattn.errors import InputError
from minattn.inspect import explore, statistics
from minattn.inspect.look import table

TITLE = "minattn explore"
PAGE = Template("""{% extends base %}
{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { font-family: sans-serif; }</style>
{% endblock %}""")
STYLE = """
.bk-clearfix { width: 100%; overflow-x: auto; overflow-wrap: anywhere; font-size: 13px; }
h2 { font-size: 18px; margin: 0; }
td, th { padding: 1px 10px 1px 0; text-align: right; white-space: nowrap; }
.wrong { color: #b00020; font-size: 15px; }
"""
PALETTES = {name: [to_hex(colour) for colour in colormaps[name](np.linspace(0, 1, 256))]
            for name in ("viridis", "PuOr")}
HINT = ("Each row of a map is a character, the query; it looks back at the columns, the keys. "
        "Colours follow the square root of a weight: bright is large; where some are negative, "
        "purple is above 0 and orange below. Point at a cell for its number.")
MARGIN = 0.04                                    # around each map of the overview
PAUSE = 80                                       # ms after a key before the text is read


# -------------------------------------------------------------------------------------- the server


def serve(models, port, *, open_browser=True):
    """Show the page on this machine until Ctrl-C; InputError if the port is taken."""
    server = start(models, port)
    address = f"http://127.0.0.1:{server.port}/"
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if open_browser and has_display():
        webbrowser.open(address)
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def start(models, port):
    """Listen on this machine alone -> the server, whose io_loop has not been started"""
    try:
        with socket.create_server(("127.0.0.1", port)) as free:
            port = free.getsockname()[1]
        hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
        server = Server({"/": lambda document: build(document, models)}, address="127.0.0.1",
                        port=port, allow_websocket_origin=hosts)
    except OSError as error:
        raise InputError(f"cannot listen on port {port}: {error.strerror or error}; choose another "
                         "with --port, or 0 for a free one.") from None
    server.start()
    return server


def build(document, models):
    """The page of one visitor"""
    document.template, document.title = PAGE, TITLE
    first = explore.first_text(models)
    text = TextAreaInput(title="Type a text:", rows=2, value=first, value_input=first,
                         sizing_mode="stretch_width", stylesheets=["textarea { font-size: 16px }"])
    hint = prose()
    hint.text = HINT
    parts, waiting = [Part(one) for one in models], []

    def read():
        waiting.clear()
        for part in parts:
            part.read(text.value_input)

    def typed(attr, old, new):
        if not waiting:                                    # several keys in a row are read once
            waiting.append(document.add_timeout_callback(read, PAUSE))

    read()
    text.on_change("value_input", typed)
    document.add_root(column(text, hint, tiles([part.layout for part in parts]),
                             sizing_mode="stretch_width", margin=(8, 12, 24, 12)))


# ---------------------------------------------------------------------------------------- one model


class Part:
    """What one model does with the text: drawn once, then fed with other numbers."""

    def __init__(self, one):
        self.one, self.view, self.text = one, None, ""
        L, H = one.run.config.n_layer, one.run.config.n_head
        self.heads = [f"layer {n}, head {h}" for n in range(L) for h in range(H)]
        self.heading, self.table = prose(), prose()
        self.choice = Select(title="Shown below (or touch a map):", value=self.heads[0],
                             options=self.heads, sizing_mode="stretch_width")
        self.choice.on_change("value", lambda attr, old, new: self.show_head())
        self.all, self.one_head = Overview(L, H, self.choose), OneHead()
        self.lines, self.likely = Lines(), Likely()
        pictures = tiles([column(*children, sizing_mode="stretch_width") for children in (
            (self.all.figure, self.choice), (self.one_head.figure,), (self.lines.figure,),
            (self.likely.figure,))])
        self.layout = column(self.heading, pictures, self.table, sizing_mode="stretch_width")

    def choose(self, layer, head):
        self.choice.value = f"layer {layer}, head {head}"

    def read(self, text):
        """Show what the model does with this text, or say why it cannot read it."""
        try:
            self.view, wrong = explore.view(self.one, text), ""
        except InputError as error:
            wrong = str(error)
        about = f"<h2>{html.escape(self.one.name)}</h2>{html.escape(self.one.about())}"
        self.heading.text = f'{about}<p class="wrong">{html.escape(wrong)}</p>'
        if not wrong:
            self.text = text
            self.all.show(self.view.inside)
            self.likely.show(self.view.likely)
            self.table.text = html_table(table(self.view.inside))
            self.show_head()

    def show_head(self):
        layer, head = divmod(self.heads.index(self.choice.value), self.one.run.config.n_head)
        self.all.mark(layer, head)
        inside = self.view.inside[layer]
        self.one_head.show(self.choice.value, self.text, inside, head)
        self.lines.show(self.choice.value, self.text, explore.by_character(inside, head))


class Overview:
    """A small map of every layer and head; a touch chooses one."""

    def __init__(self, n_layer, n_head, choose):
        self.source, self.chosen = source("image x y head entropy first"), source("x y")
        self.figure = plot("Every layer and head", (0, n_head), (n_layer, 0), n_head / n_layer, [
            ("head", "@head"), ("mean entropy (nats)", "@entropy"),
            ("mean weight on the first character", "@first")])
        self.colours, side = LinearColorMapper(nan_color="white"), 1 - 2 * MARGIN
        self.figure.image("image", "x", "y", side, side, source=self.source,
                          color_mapper=self.colours)
        self.figure.rect("x", "y", 1, 1, source=self.chosen, fill_alpha=0, line_width=3,
                         line_color=plots.COLOURS[1])
        ticks(self.figure.xaxis, [h + 0.5 for h in range(n_head)],
              [f"head {h}" for h in range(n_head)])
        ticks(self.figure.yaxis, [n + 0.5 for n in range(n_layer)],
              [f"layer {n}" for n in range(n_layer)])

        def touched(event):
            if 0 <= event.x < n_head and 0 <= event.y < n_layer:
                choose(int(event.y), int(event.x))

        self.figure.on_event(Tap, touched)

    def show(self, inside):
        maps = [explore.weights(layer) for layer in inside]
        fit_colours(self.colours, np.concatenate(maps))
        data = {name: [] for name in self.source.data}
        for n, layer in enumerate(inside):
            entropy = statistics.entropy(layer.weights)
            first = statistics.first_token_mass(layer.weights, layer.visible)
            for h, w in enumerate(maps[n]):
                data["image"].append(shade(w))
                data["x"].append(h + MARGIN)
                data["y"].append(n + MARGIN)
                data["head"].append(f"layer {n}, head {h}: {layer.name}")
                data["entropy"].append(f"{entropy[h]:.2f}")
                data["first"].append(f"{first[h]:.2f}")
        self.source.data = data

    def mark(self, layer, head):
        self.chosen.data = {"x": [head + 0.5], "y": [layer + 0.5]}


class OneHead:
    """Who looks at whom in one head, with the characters on both axes."""

    def __init__(self):
        self.source = source("image weight query key size")
        self.figure = plot("", (-0.5, 0.5), (0.5, -0.5), 1, [
            ("query", "@query"), ("key", "@key"), ("weight", "@weight{0.0000}")])
        self.figure.axis.axis_line_color = None
        self.colours = LinearColorMapper(nan_color="white")
        self.figure.image("image", -0.5, -0.5, "size", "size", source=self.source,
                          color_mapper=self.colours)

    def show(self, title, text, layer, head):
        w, T = explore.weights(layer)[head], len(text)
        names = [f"{explore.shown(c)} ({n})" for n, c in enumerate(text)]
        fit_colours(self.colours, w)
        self.figure.title.text = f"Who looks at whom: {title}"
        for axis in (self.figure.xaxis, self.figure.yaxis):
            characters_on(axis, text)
        self.figure.x_range.update(start=-0.5, end=T - 0.5)
        self.figure.y_range.update(start=T - 0.5, end=-0.5)
        self.source.data = {"image": [shade(w)], "weight": [w], "size": [T],
                            "query": [[name for name in names for _ in names]],
                            "key": [names * T]}


class Lines:
    """What one head computed for each character: gates, alpha, the weight that it receives."""

    def __init__(self):
        self.figure = plot("", (-0.5, 0.5), None, 1.3, [
            ("character", "@character"), ("", "@label: @value{0.0000}")])
        self.figure.add_layout(Legend(orientation="horizontal", border_line_color=None), "above")
        self.figure.y_range.only_visible = True
        self.sources, self.drawn = {}, {}

    def show(self, title, text, lines):
        self.figure.title.text = f"Character by character: {title}"
        self.figure.x_range.update(start=-0.5, end=len(text) - 0.5)
        characters_on(self.figure.xaxis, text)
        for label in dict.fromkeys([*lines, *self.sources]):
            if label not in self.sources:
                self.add(label)
            values = lines.get(label, [])
            for one in self.drawn[label]:
                one.visible = label in lines
            self.sources[label].data = {
                "x": list(range(len(values))), "value": list(values),
                "label": [label] * len(values),
                "character": [explore.shown(c) for c in text[:len(values)]]}

    def add(self, label):
        colour = plots.COLOURS[len(self.sources) % len(plots.COLOURS)]
        data = self.sources[label] = source("x value label character")
        line = self.figure.line("x", "value", source=data, color=colour, line_width=2)
        dots = self.figure.scatter("x", "value", source=data, color=colour, size=6)
        item = LegendItem(label=label, renderers=[line, dots])
        self.figure.legend[0].items.append(item)
        self.drawn[label] = line, dots, item


class Likely:
    """What the next character may be."""

    def __init__(self):
        self.source = source("y p character")
        places = explore.LIKELY - 0.5, -0.5
        self.figure = plot("What comes next, and how probably", (0, 1), places, 1.6, [
            ("character", "@character"), ("probability", "@p{0.0000}")])
        self.figure.hbar("y", right="p", height=0.7, source=self.source, color=plots.COLOURS[0])

    def show(self, likely):
        names = [explore.shown(character) for character, _ in likely]
        places = list(range(len(likely)))
        ticks(self.figure.yaxis, places, names)
        self.source.data = {"y": places, "p": [p for _, p in likely], "character": names}


# ------------------------------------------------------------------------------------------- pieces


def tiles(children):
    """As many in a row as fit; one below the other on a phone."""
    return row(children, sizing_mode="stretch_width", styles={
        "display": "grid", "gap": "12px", "align-items": "start",
        "grid-template-columns": "repeat(auto-fit, minmax(min(330px, 100%), 1fr))"})


def plot(title, x_range, y_range, aspect, tooltips):
    """An empty figure that has hovering as its only tool, so that a page on a phone still scrolls.

    aspect: width / height
    """
    ranges = {"x_range": x_range} | ({"y_range": y_range} if y_range else {})
    fig = figure(title=title, aspect_ratio=aspect, sizing_mode="scale_width", max_width=620,
                 tools="tap", toolbar_location=None, tooltips=tooltips, **ranges)
    fig.grid.grid_line_color = fig.axis.minor_tick_line_color = None
    return fig


def source(names):
    return ColumnDataSource({name: [] for name in names.split()})


def prose():
    return Div(stylesheets=[STYLE], sizing_mode="stretch_width", disable_math=True)


def ticks(axis, places, names):
    axis.ticker = places
    axis.major_label_overrides = dict(zip(places, names))


def characters_on(axis, text):
    ticks(axis, list(range(len(text))), [explore.shown(character) for character in text])
    axis.major_label_text_font_size = "13px" if len(text) <= 32 else "9px"


def shade(w):
    """What a colour follows: the square root of the weight, so that small ones show"""
    return np.sign(w) * np.sqrt(np.abs(w))


def fit_colours(mapper, w):
    """From 0, or symmetric where a weight is negative"""
    reach = max(float(np.nanmax(np.abs(shade(w)))), 1e-3)
    negative = np.nanmin(w) < 0
    mapper.update(low=-reach if negative else 0, high=reach,
                  palette=PALETTES["PuOr" if negative else "viridis"])


def html_table(rows):
    cells = [["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)]
             for tag, line in zip(["th", *["td"] * len(rows)], rows)]
    return "<table>" + "".join(f"<tr>{line[0]}</tr>" for line in cells) + "</table>"
