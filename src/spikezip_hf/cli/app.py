"""The commands. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spikezip_hf import __version__
from spikezip_hf.cli.report import AsJson, guarded, only_json, say

app = typer.Typer(
    name="spikezip",
    help="Exact spiking Transformers: train, convert, verify, evaluate and share them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint.", metavar="MODEL")]
Dataset = Annotated[str | None, typer.Option(help="Hub id of a data set.")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of it.")]
DataDir = Annotated[str | None, typer.Option(help="Folder of a data set, instead; or one inside SPIKEZIP_DATA.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts, if not found by itself.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images, if not found by itself.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels, if not found by itself.")]
MaxLength = Annotated[int, typer.Option(help="Most tokens of a text; the rest is cut off.")]
EventFrames = Annotated[
    int | None,
    typer.Option(help="Frames of a recording of events, one a time-step; 0: one static image. Default: the model's."),
]


NOT_EXACT = 3  # exit status of verify; 1 is an error, 2 a wrong option


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    pass


def example(text: str) -> str:
    """An epilog of help."""
    return f"Example: {text}"


def main() -> None:
    """What the `spikezip` command calls."""
    app()


@app.command(epilog=example("spikezip demo --output outputs/digits"))
@guarded
def demo(
    output: Annotated[Path, typer.Option(help="Folder for results and networks.")] = Path("outputs/digits"),
    seed: Annotated[int, typer.Option(help="Of data split, weights and training.")] = 0,
    levels: Annotated[int, typer.Option(help="Quantization levels, even, 4 to 256.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Train, quantize, convert and verify a ViT on real digits: the whole life of a network in three minutes."""
    from spikezip_hf import demo
    from spikezip_hf.analysis import table

    with only_json(as_json):
        results = demo.run(output, seed, levels)
    say(results, as_json, f"\n{table(results['simulated'])}\n\n{demo.written(output)}")


@app.command(
    epilog=example("spikezip train training/recipes/small/sst2_bert.yaml --stage qat --quantization_levels 16"),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
@guarded
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML file with the arguments of each stage.")],
    stage: Annotated[
        str | None, typer.Option(help="finetune, qat or convert; by default all that the recipe has, in this order.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the stages of a recipe: fine-tuning, quantization-aware training, conversion with evaluation.

    A stage that is finished is not repeated, one that was cut off goes on. Further flags go to the stages that know
    them, and count more than the recipe: `--num_train_epochs`, `--data_dir`, ...; the scripts of training/ list them
    with --help.
    """
    from spikezip_hf.recipes.stages import run_stages

    with only_json(as_json):
        results = run_stages(recipe, stage, context.args)
    say(results, as_json, "\n".join(f"{name}: {told}" for name, told in results.items()))


@app.command(epilog=example("spikezip quantize outputs/ann outputs/ptq --data-dir data/sst2 --quantization-levels 32"))
@guarded
def quantize(
    ann: Annotated[str, typer.Argument(help="Folder or Hub id of an ordinary network with ReLU.", metavar="ANN")],
    output: Annotated[Path, typer.Argument(help="Folder to save the Quant model to.")],
    dataset: Dataset = None,
    subset: Subset = None,
    data_dir: DataDir = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
    event_frames: EventFrames = None,
    quantization_levels: Annotated[int, typer.Option(help="Levels of the activations, even, 4 to 256.")] = 32,
    weight_bits: Annotated[int | None, typer.Option(help="8 for weights of 8 bits.")] = None,
    scale_granularity: Annotated[
        str | None, typer.Option(help="per_tensor, per_channel or mixed. Default: the architecture's own.")
    ] = None,
    head_act: Annotated[
        str | None,
        typer.Option(help="Activation in the head of a text classifier. Default: tanh, as the ANN has, and not relu."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="mse (least error), percentile (all but the largest activations fit) or lsq (LSQ's rule)."),
    ] = "mse",
    percentile: Annotated[
        float | None, typer.Option(help="With --method percentile: so many percent fit. Default: 99.9.")
    ] = None,
    calibration_samples: Annotated[int, typer.Option(help="Training samples that set the scales.")] = 256,
    seed: Annotated[int, typer.Option(help="Of their choice.")] = 42,
    replace_activations: Annotated[
        bool, typer.Option("--replace-activations", help="Put ReLU where the ANN has another activation.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Held-out samples to measure on, evenly spread.")] = 500,
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Do not measure: labels, which the data has to have, may be any.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 32,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Use no accelerator, though there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize an ordinary network without training it: scales by calibration, and the accuracy that this costs.

    For a look before training. `spikezip convert` makes the result spike; `spikezip train` gives better ones.
    """
    from spikezip_hf.recipes.inputs import DataArguments
    from spikezip_hf.recipes.quantize import CalibrationArguments, quantize, summary

    data = data_fields(dataset, subset, data_dir, text_column, image_column, label_column, max_length, event_frames)
    if dataset is None and data_dir is None:
        raise ValueError("No data: give --dataset (a Hub id) or --data-dir (a folder, or one inside SPIKEZIP_DATA).")
    arguments = CalibrationArguments(
        quantization_levels=quantization_levels,
        weight_bits=weight_bits,
        scale_granularity=scale_granularity,
        head_act=head_act,
        method=method,
        percentile=percentile,
        calibration_samples=calibration_samples,
        seed=seed,
        replace_activations=replace_activations,
        limit=limit,
        evaluate=not no_evaluate,
        batch_size=batch_size,
        use_cpu=use_cpu,
    )
    with only_json(as_json):
        answer = quantize(ann, output, DataArguments(**data), arguments)
    say(answer, as_json, f"{summary(answer)}\nwritten to {output}")


@app.command(epilog=example("spikezip convert outputs/qann outputs/snn --time-steps 128"))
@guarded
def convert(
    qann: Annotated[str, typer.Argument(help="Folder or Hub id of a trained Quant model.", metavar="QANN")],
    output: Annotated[Path, typer.Argument(help="Folder to save the spiking network to.")],
    time_steps: Annotated[int, typer.Option(help="T, most time-steps of a simulation.")] = 64,
    max_spikes_per_step: Annotated[int, typer.Option(help="k, spikes a neuron may fire in a step.")] = 1,
    firing_schedule: Annotated[
        str,
        typer.Option(
            help="synchronous (the paper's), layerwise, or coarse_to_fine (fewer spikes, more steps: T is raised)."
        ),
    ] = "synchronous",
    firing_window: Annotated[int | None, typer.Option(help="Steps between layers, of layerwise.")] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a trained Quant model to its spiking twin, with tokenizer or image processor and a model card."""
    from spikezip_hf.cli.checkpoints import convert, describe

    with only_json(as_json):
        convert(
            qann,
            output,
            time_steps=time_steps,
            max_spikes_per_step=max_spikes_per_step,
            firing_schedule=firing_schedule,
            firing_window=firing_window,
        )
        answer, text = describe(str(output))
    say(answer, as_json, text)


@app.command(
    "import", epilog=example("spikezip import vit-small-imagenet-relu-q32-81.59.pth outputs/qann --levels 32")
)
@guarded
def import_(
    file: Annotated[Path, typer.Argument(help=".pth or .safetensors file of the paper's code, or in its layout.")],
    output: Annotated[Path, typer.Argument(help="Folder to save the Quant model to.")],
    levels: Annotated[
        int | None, typer.Option(help="Quantization levels, the --level of its training, if the file does not say it.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads of a layer, if it is no network of the paper's sizes.")
    ] = None,
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width of the images, if they are no squares.")
    ] = None,
    layer_norm_eps: Annotated[
        float | None, typer.Option(help="eps of each LayerNorm; by default 1e-6 for ViT, 1e-5 for RoBERTa.")
    ] = None,
    weight_bits: Annotated[
        int | None, typer.Option(help="Bits of the weights, if they are quantized and the file does not say it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a Quant model of a checkpoint of the paper's code: ViT, or RoBERTa.

    No code in the file is run. What is missing, not known or unusable is an error; the report says what went where.
    """
    from spikezip_hf.cli.checkpoints import import_reference

    with only_json(as_json):
        report = import_reference(
            file,
            output,
            levels,
            num_attention_heads=heads,
            image_size=image_size,
            layer_norm_eps=layer_norm_eps,
            weight_bits=weight_bits,
        )
    say({**report.as_dict(), "written to": str(output)}, as_json, f"{report}\nwritten to {output}")


@app.command(epilog=example("spikezip verify outputs/snn --data-dir data/sst2 --samples 64"))
@guarded
def verify(
    model: Model,
    qann: Annotated[
        str | None, typer.Option(help="Quant model to hold it against; by default its own weights, quantized.")
    ] = None,
    dataset: Dataset = None,
    subset: Subset = None,
    data_dir: DataDir = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
    event_frames: EventFrames = None,
    samples: Annotated[int, typer.Option(help="Samples to simulate.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Samples simulated at once.")] = 16,
    time_steps: Annotated[int | None, typer.Option(help="Most time-steps; the model's own by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove, neuron by neuron, that a spiking network equals its quantized twin. Exits with 3 if it does not.

    Without data, the inputs are drawn at random.
    """
    from spikezip_hf.cli.checkpoints import verify

    data = data_fields(dataset, subset, data_dir, text_column, image_column, label_column, max_length, event_frames)
    with only_json(as_json):
        answer = verify(model, qann, data, samples, batch_size, time_steps)
    say(answer, as_json, f"{answer['certificate']} ({answer['inputs']})")
    if not answer["exact"]:
        raise typer.Exit(NOT_EXACT)


@app.command(
    epilog=example("spikezip evaluate outputs/snn --data-dir data/sst2 --report-time-steps 16 --report-time-steps 64")
)
@guarded
def evaluate(
    model: Model,
    dataset: Dataset = None,
    subset: Subset = None,
    data_dir: DataDir = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
    event_frames: EventFrames = None,
    ann: Annotated[str | None, typer.Option(help="Ordinary network to have beside it, a folder or Hub id.")] = None,
    report_time_steps: Annotated[
        list[int] | None, typer.Option(help="A T to report; give it several times. Default: 16, 32 and 64.")
    ] = None,
    time_steps: Annotated[int, typer.Option(help="Most time-steps that a sample is simulated for.")] = 512,
    simulate: Annotated[int | None, typer.Option(help="Samples to simulate, evenly spread. Default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples simulated at once.")] = 16,
    results: Annotated[str | None, typer.Option(help="File of the figures, if not beside the checkpoint.")] = None,
    predictions: Annotated[
        str | None, typer.Option(help="Folder of every sample's predictions, if elsewhere; a cut-off run goes on.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace figures of more samples of the same data, too.")
    ] = False,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Use no accelerator, though there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a Quant or Spike model on a test set: accuracy at each T and at equilibrium, T_eq, spikes, certificate.

    Writes results.json beside the checkpoint, or for a Hub id to outputs/, and the model card anew. A run that was cut
    off goes on when the same command is given again. Under `accelerate launch -m spikezip_hf evaluate ...` processes,
    on one machine or more, share the samples.
    """
    from spikezip_hf.recipes.evaluate import EvaluationArguments, evaluate
    from spikezip_hf.recipes.inputs import DataArguments

    data = data_fields(dataset, subset, data_dir, text_column, image_column, label_column, max_length, event_frames)
    if dataset is None and data_dir is None:
        raise ValueError("No data: give --dataset (a Hub id) or --data-dir (a folder, or one inside SPIKEZIP_DATA).")
    arguments = EvaluationArguments(
        results=results,
        time_steps=time_steps,
        report_time_steps=report_time_steps or [steps for steps in (16, 32, 64) if steps <= time_steps],
        simulate=simulate,
        batch_size=batch_size,
        use_cpu=use_cpu,
        predictions=predictions,
    )
    with only_json(as_json):
        answer = evaluate(model, DataArguments(**data), arguments, ann=ann, overwrite=overwrite)
    if not arguments.processes.is_main_process:
        return  # the first one speaks for all
    text, whole = answer.pop("table"), answer["accuracy on the whole split"]
    accuracies = ", ".join(f"{name} {whole[name]:.2%}" for name in ("ANN", "QANN") if name in whole)
    lines = [text, f"accuracy on all {whole['samples']} samples: {accuracies}", f"written to {answer['written to']}"]
    say(answer, as_json, "\n\n".join(lines))


@app.command(epilog=example("spikezip report outputs/snn --data-dir data/sst2 --limit 200 --output outputs/report"))
@guarded
def report(
    model: Model,
    dataset: Dataset = None,
    subset: Subset = None,
    data_dir: DataDir = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
    event_frames: EventFrames = None,
    limit: Annotated[int, typer.Option(help="Samples to simulate, evenly spread over the split.")] = 256,
    time_steps: Annotated[int, typer.Option(help="Most time-steps that a sample is simulated for.")] = 512,
    sample: Annotated[
        int | None, typer.Option(help="Row of the split to look at closely. Default: the first one simulated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples simulated at once.")] = 16,
    output: Annotated[
        str | None, typer.Option(help="Folder of the report, if not MODEL-report-DATA, beside the checkpoint.")
    ] = None,
    energy_samples: Annotated[
        int, typer.Option(help="Samples whose operations are counted, step by step, for energy; 0: leave it out.")
    ] = 8,
    costs: Annotated[
        bool, typer.Option("--costs", help="Measure time and memory of the simulation against T. Takes minutes.")
    ] = False,
    training_record: Annotated[
        list[str] | None,
        typer.Option(help="training.json, or results with several; its hours are reported. Give it several times."),
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="Power of all that those trainings ran on, to have kilowatt-hours, too.")
    ] = None,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Use no accelerator, though there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a spiking network at work on a test set: accuracy, spikes of each node and attention over time, T_eq,
    operations and energy beside the quantized network's.

    Writes report.html, one file that needs nothing else; the same as JSON, CSV and Parquet; and the figures. All of
    them at the end, or nothing.
    """
    from spikezip_hf.recipes.inputs import DataArguments
    from spikezip_hf.recipes.report import ReportArguments, report, summary

    data = data_fields(dataset, subset, data_dir, text_column, image_column, label_column, max_length, event_frames)
    if dataset is None and data_dir is None:
        raise ValueError("No data: give --dataset (a Hub id) or --data-dir (a folder, or one inside SPIKEZIP_DATA).")
    arguments = ReportArguments(
        output=output,
        time_steps=time_steps,
        limit=limit,
        sample=sample,
        batch_size=batch_size,
        energy_samples=energy_samples,
        costs=costs,
        training_records=training_record or [],
        watts=watts,
        use_cpu=use_cpu,
    )
    with only_json(as_json):
        answer = report(model, DataArguments(**data), arguments)
    say(answer, as_json, summary(answer))


@app.command("app", epilog=example("spikezip app outputs/snn --port 7860"))
@guarded
def webapp(
    model: Model,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. The default is this machine alone; 0.0.0.0 is whoever reaches it."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free one from 7860.")
    ] = None,
    time_steps: Annotated[int, typer.Option(help="Most time-steps that an input is simulated for.")] = 512,
    max_length: Annotated[int, typer.Option(help="Most tokens of a text; longer ones are refused.")] = 128,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Use no accelerator, though there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a spiking network settle, step by step, on a page in your browser: type a sentence, or drop an image.

    What you give it stays on the machine it runs on; the page fetches nothing. Ctrl-C ends it. Needs gradio:
    pip install 'spikezip-hf[app]'.
    """
    from spikezip_hf.cli import webapp

    webapp.import_gradio()  # what is missing is said before anything is loaded
    with only_json(as_json):
        watcher = webapp.load(model, time_steps, max_length, use_cpu)

    def announce(address: str) -> None:
        say({"url": address, "checkpoint": model}, as_json, f"Open {address} in a browser; Ctrl-C ends this.")

    webapp.serve(watcher, model, host, port, announce)


@app.command(epilog=example("spikezip export outputs/snn outputs/snn.onnx --format onnx --what step"))
@guarded
def export(
    model: Model,
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write, or a folder for model.onnx or model.pt2 in it; of spike-graph and nir a folder."
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="onnx; torch (a program of torch.export, .pt2); spike-graph, the spiking network as data, for "
            "simulators of hardware; nir, its affine maps, one file each, which is all that NIR has words for."
        ),
    ] = "onnx",
    what: Annotated[
        str | None,
        typer.Option(
            help="Of onnx and torch: quantized, or step: one step of the spiking network. Default: what the "
            "checkpoint holds."
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Of a step: static, the whole input each time; frames, what arrives in it. [default: static]"
        ),
    ] = None,
    subgraph: Annotated[str | None, typer.Option(help="Of nir: path of one affine map. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a network for other runtimes: the quantized one, or one step of the spiking one, its state in and out; or
    the whole spiking one as data.

    An ONNX file is checked in onnxruntime, node by node, before it is put where it belongs. ONNX and NIR need
    pip install 'spikezip-hf[export]'.
    """
    from spikezip_hf.cli.export import export

    with only_json(as_json):
        answer, text = export(model, output, format, what=what, inputs=inputs, subgraph=subgraph)
    say(answer, as_json, text)


@app.command(epilog=example("spikezip card outputs/snn --license apache-2.0 --language en"))
@guarded
def card(
    model: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    results: Annotated[Path | None, typer.Option(help="results.json of this network, if not in the folder.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it; the folder's name by default.")] = None,
    license: Annotated[str | None, typer.Option(help="Its licence, as the Hub names it.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Its language (en, zh, ...).")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the network it was made from.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="One more tag; give it several times.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a checkpoint anew, from the model and its results. One that somebody wrote is kept."""
    from spikezip_hf.cli.checkpoints import card

    with only_json(as_json):
        answer = card(
            model, results, name, license=license, language=language or None, base_model=base_model, tags=tag or None
        )
    say(answer, as_json, f"Written: {answer['card']}")


@app.command(epilog=example("spikezip push outputs/snn organisation/spike-roberta-b-32 --private"))
@guarded
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: organisation/name; a name alone is in your own account.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; it is created if need be.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload model",
    tag: Annotated[list[str] | None, typer.Option(help="One more tag; give it several times.")] = None,
    token: Annotated[str | None, typer.Option(help="Access token, if not the one you logged in with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a checkpoint with all that belongs to it, in one commit: it is there whole, or what was there before is."""
    from spikezip_hf.cli.checkpoints import push

    with only_json(as_json):
        answer = push(
            folder,
            repo_id,
            private=private or None,
            revision=revision,
            create_pr=create_pr,
            commit_message=message,
            tags=tag or [],
            token=token,
        )
    say(answer, as_json, f"Pushed: {answer['url']}")


@app.command(epilog=example("spikezip info organisation/spike-roberta-b-32 --json"))
@guarded
def info(
    model: Model,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """What is this checkpoint: class, levels, nodes, T, schedule, certificate."""
    from spikezip_hf.cli.checkpoints import describe

    with only_json(as_json):
        answer, text = describe(model, revision)
    say(answer, as_json, text)


def data_fields(
    dataset, subset, data_dir, text_column, image_column, label_column, max_length, event_frames
) -> dict[str, Any]:
    """Fields of `recipes.inputs.DataArguments`.

    Raises:
        ValueError: two data sets are named.
    """
    if dataset is not None and data_dir is not None:
        raise ValueError("--dataset and --data-dir name two data sets: give one.")
    return {
        "dataset": dataset,
        "dataset_subset": subset,
        "data_dir": data_dir,
        "text_column": text_column,
        "image_column": image_column,
        "label_column": label_column,
        "max_length": max_length,
        "event_frames": event_frames,
    }


if __name__ == "__main__":
    main()
