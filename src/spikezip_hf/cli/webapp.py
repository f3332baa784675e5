"""`spikezip app`: a page on this machine on which a network is watched, step by step. What it shows is `frames`'."""

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from spikezip_hf.analysis.watching import EXAMPLES, Watcher
from spikezip_hf.cli.report import is_expected
from spikezip_hf.errors import one_line

SETTLED = {  # what gradio would otherwise do over the network, or leave behind
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PERIOD = 0.25  # seconds between steps, when they are played
CHARACTERS = 20_000  # most that can be typed
TITLE = "An SNN step by step"

logger = logging.getLogger(__name__)


def import_gradio() -> Any:
    """The module; nothing of it is imported before, since it asks for its settings when it is.

    Raises:
        ImportError: it is not installed; says how to.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTLED.items()})
    try:
        import gradio
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"The app needs gradio and matplotlib ({error}): pip install 'spikezip-hf[app]'.") from error
    return gradio


def watched_or_problem(watcher: Watcher, what: Any) -> tuple[Any, str]:
    """What is to be seen of an input, and nothing; or None, and one line for the page."""
    try:
        return watcher.watch(what), ""
    except Exception as error:
        if is_expected(error):
            return None, one_line(error)
        logger.exception("The app could not simulate an input.")
        return None, f"This input could not be simulated ({type(error).__name__}); the terminal says more."


def build(watcher: Watcher, name: str = "") -> Any:
    """The page, a `gradio.Blocks`. Its functions can also be called over HTTP: /watch (an input) and /show (a step).

    Args:
        name: of the network, to be shown.
    """
    gr = import_gradio()
    from spikezip_hf.analysis import frames

    per_step: tuple[Callable, ...] = (frames.now, frames.answers, frames.attention, frames.nodes)
    per_input: tuple[Callable, ...] = (frames.facts, frames.course, frames.rates, frames.raster)

    def watch(what):
        watched, trouble = watched_or_problem(watcher, what)
        paused = (gr.Timer(active=False), gr.Button("Play"))
        if watched is None:
            nothing = [gr.skip()] * (1 + len(per_step)) + [""] * len(per_input)
            return [None, frames.problem(trouble), gr.Column(visible=False), *paused, *nothing]
        last = len(watched)
        slider = gr.Slider(1, max(2, last), value=last, step=1)
        pieces = [piece(watched, last) for piece in per_step] + [piece(watched) for piece in per_input]
        return [watched, "", gr.Column(visible=True), *paused, slider, *pieces]

    def show(watched, step):
        if watched is None:
            return [gr.skip()] * len(per_step)
        step = min(max(1, int(step or 1)), len(watched))
        return [piece(watched, step) for piece in per_step]

    def play(watched, step, label):
        """Start, or stop where it is."""
        if watched is None or label == "Pause":
            return gr.Timer(active=False), gr.Button("Play"), gr.skip()
        return gr.Timer(active=True), gr.Button("Pause"), 1 if step >= len(watched) else gr.skip()

    def tick(watched, step):
        """The next step; the last one stops the clock."""
        if watched is None or step >= len(watched):
            return gr.skip(), gr.Timer(active=False), gr.Button("Play")
        ends = step + 1 >= len(watched)
        return step + 1, gr.Timer(active=False) if ends else gr.skip(), gr.Button("Play") if ends else gr.skip()

    with gr.Blocks(title=f"{TITLE}: {name}" if name else TITLE, analytics_enabled=False) as page:
        gr.HTML(heading(watcher, name), padding=False)
        state = gr.State(None, time_to_live=3600)
        timer = gr.Timer(PERIOD, active=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                if watcher.of_text:
                    given = gr.Textbox(label="Sentence", lines=2, max_length=CHARACTERS, autofocus=True)
                else:
                    given = gr.Image(label="Image", sources=["upload", "clipboard"], height=260)
                    # Files are handed on as they are: gradio's own reading of a broken one fails with a page of text.
                    # (Not by a subclass: gradio would write a .pyi file for it beside this one.)
                    given.preprocess = lambda payload: None if payload is None else payload.path
                start = gr.Button("Watch", variant="primary")
                if watcher.of_text:
                    gr.Examples([[text] for text in EXAMPLES], inputs=given, label="Examples")
                trouble = gr.HTML()
                facts = gr.HTML()
            with gr.Column(scale=3, min_width=320, visible=False) as results:
                with gr.Row(equal_height=True):
                    slider = gr.Slider(1, 2, value=1, step=1, label="time-step T", scale=5, buttons=[])
                    button = gr.Button("Play", scale=1, min_width=80)
                moving = [gr.HTML() for _ in per_step[:-1]]
        with gr.Column(visible=False) as below:
            with gr.Row():
                with gr.Column(min_width=320):
                    course = gr.HTML()
                    raster = gr.HTML()
                with gr.Column(min_width=320):
                    rates = gr.HTML()
            with gr.Accordion("Node by node", open=False):
                moving.append(gr.HTML())
        fixed = [facts, course, rates, raster]
        shared = {"concurrency_id": "simulation", "concurrency_limit": 1}
        outputs = [state, trouble, results, timer, button, slider, *moving, *fixed]
        events = [start.click, given.submit if watcher.of_text else given.upload]
        for event, visible in zip(events, ("public", "private")):
            run = event(watch, given, outputs, api_name="watch", api_visibility=visible, **shared)
            # Both columns come and go together.
            run.then(
                lambda seen: gr.Column(visible=seen is not None), state, below, api_visibility="private", queue=False
            )
        slider.change(
            show, [state, slider], moving, api_name="show", show_progress="hidden", trigger_mode="always_last"
        )
        button.click(
            play, [state, slider, button], [timer, button, slider], api_visibility="private", show_progress="hidden"
        )
        timer.tick(tick, [state, slider], [slider, timer, button], api_visibility="private", show_progress="hidden")
    return page


def heading(watcher: Watcher, name: str) -> str:
    model = watcher.model
    about = f"{type(model).__name__}, {model.config.quantization_levels} levels, {len(model.node_names)} nodes"
    limit = f"; texts of at most {watcher.max_length} tokens" if watcher.of_text else ""
    return (
        f'<div class="watch"><h2 style="margin: 0">{escape(name or TITLE)}</h2>'
        f'<p class="dim">{escape(about)}; at most {watcher.time_steps} steps{limit}. '
        "SNN: the spiking network. QANN: the quantized network that it equals once it has settled.</p></div>"
    )


@contextlib.contextmanager
def served(watcher: Watcher, name: str = "", host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Have the page up while inside; its address.

    Args:
        host: address to listen on. The default is this machine alone; "0.0.0.0" is everybody who can reach it.
        port: by default the first free one from 7860.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    gr = import_gradio()
    from spikezip_hf.analysis.frames import STYLE

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is fetched
    with tempfile.TemporaryDirectory(prefix="spikezip_app_") as uploads:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = None
        try:
            page = build(watcher, name)
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                show_error=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                state_session_capacity=32,
                max_file_size="32mb",
                theme=gr.themes.Base(**fonts),
                css=STYLE,
            )
            yield address
        finally:
            if page is not None:
                page.close(verbose=False)
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(watcher: Watcher, name: str, host: str, port: int | None, announce: Callable[[str], None]) -> None:
    """Have the page up until Ctrl-C, which is how the app is left; or SIGTERM, so that uploads are removed then, too.

    Args:
        announce: called with the page's address.
    """

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with contextlib.suppress(KeyboardInterrupt), served(watcher, name, host, port) as address:
            announce(address)
            wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def wait() -> None:
    """For ever."""
    threading.Event().wait()


def load(source: str, time_steps: int, max_length: int, use_cpu: bool) -> Watcher:
    """A watcher of a checkpoint.

    Raises:
        ValueError, OSError: it holds no classifier that can be watched; one line.
    """
    import torch

    from spikezip_hf.loading import class_of, load_network

    cls, _ = class_of(source)
    if not cls.__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        raise ValueError(f"{source} holds a {cls.__name__}: only classifiers of texts and images are watched here.")
    model, processor = load_network(source)
    device = torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    return Watcher(model.to(device), processor, time_steps, max_length)
