"""What the commands do with a checkpoint."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel
from transformers.utils.logging import tqdm

from spikezip_hf.auto import spiking_class
from spikezip_hf.conversion import Certificate, ImportReport, read_reference, verify_equivalence
from spikezip_hf.conversion.certificate import check_twins
from spikezip_hf.hub import push_folder, read_results, write_card
from spikezip_hf.hub.card_data import tags_of
from spikezip_hf.hub.card_text import equilibrium_line
from spikezip_hf.hub.cards import CARD, is_generated
from spikezip_hf.hub.push import RESULTS
from spikezip_hf.hub.results import FILE, network_digest, results_of
from spikezip_hf.loading import class_of, is_text, load_processor, load_twin
from spikezip_hf.models.checkpoint_files import check_seal
from spikezip_hf.models.checkpoints import find_file
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel, TwinPreTrainedModel


def convert(qann: str, output: Path, **fields: Any) -> None:
    """Convert a Quant checkpoint to a Spike checkpoint, whole or not at all.

    Raises:
        ValueError, OSError: it is no such checkpoint, a field is out of range, or `output` cannot be written.
    """
    if output.resolve() == Path(qann).resolve():
        raise ValueError(f"output is {output}, the quantized network itself: name another folder.")
    quantized = load_twin(qann, QuantPreTrainedModel)
    cls = spiking_class(type(quantized))
    check_output(output, cls)
    schedule = fields.get("firing_schedule")
    if schedule == "nodewise":
        raise ValueError(
            'firing_schedule: "nodewise" is made from data, of which this command has none: call '
            'calibrate_schedule(batches, "nodewise") of the spiking model in Python, or take "coarse_to_fine".'
        )
    if schedule == "coarse_to_fine":
        del fields["firing_schedule"]
    snn = cls.from_quantized(quantized, **fields)
    if schedule == "coarse_to_fine":
        snn.calibrate_schedule()
    snn.save_pretrained(output)


def check_output(output: Path, cls: type[TwinPreTrainedModel]) -> None:
    """Raise ValueError if `output` holds a network of another class than `cls`."""
    if (output / "config.json").is_file() and class_of(str(output))[0] is not cls:
        raise ValueError(f"output: {output} holds another network, whose files would stay: name another folder.")


def import_reference(file: Path, output: Path, levels: int | None, **arguments: Any) -> ImportReport:
    """Make a Quant checkpoint of a file of the paper's code, whole or not at all.

    Raises:
        ValueError, OSError: as for `read_reference`, or `output` cannot be written or holds another network.
    """
    qann, report = read_reference(file, levels, **arguments)
    check_output(output, type(qann))
    qann.save_pretrained(output)
    return report


def random_batches(model: TwinPreTrainedModel, samples: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Batches of noise for images, of 16 tokens at random for texts."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    if hasattr(config, "vocab_size"):
        ids = torch.randint(config.vocab_size // 2, config.vocab_size, (samples, 16), generator=generator)
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(size)]
    shape = model.dummy_inputs["pixel_values"].shape[1:]
    return [{"pixel_values": part} for part in torch.randn(samples, *shape, generator=generator).split(size)]


def data_batches(
    source: str, model: TwinPreTrainedModel, data: Mapping[str, Any], samples: int, size: int
) -> tuple[list[dict[str, torch.Tensor]], str]:
    """Batches of samples, evenly spread, of the split of a data set to report on, and the name of the split."""
    from spikezip_hf.recipes.evaluate import by_length
    from spikezip_hf.recipes.inputs import DataArguments, load_data, model_inputs, reported_split, settle_frames
    from spikezip_hf.training.snn_evaluation import evenly_spread

    arguments, of_text = DataArguments(**data), is_text(model.config.model_type)
    splits = load_data(arguments, is_text=of_text, needs_training=False)
    processor = load_processor(source)
    settle_frames(processor, arguments)
    inputs, collate = model_inputs(splits, processor, arguments, of_text)
    split = reported_split(splits)
    chosen = evenly_spread(inputs[split], samples)
    rows = by_length(chosen)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [dict(collate([chosen[row] for row in part])) for part in parts], split


def verify(
    source: str,
    qann: str | None,
    data: Mapping[str, Any],
    samples: int,
    batch_size: int,
    time_steps: int | None,
) -> dict[str, Any]:
    """Certificate of a spiking network on samples of a data set, or on random inputs.

    Raises:
        ValueError, OSError: something is wrong with a checkpoint, the data or an argument.
    """
    check_positive_integer("samples", samples)
    check_positive_integer("batch_size", batch_size)
    if time_steps is not None:
        check_positive_integer("time_steps", time_steps)
    snn = load_twin(source, SpikePreTrainedModel)
    twin = snn.to_quantized() if qann is None else load_twin(qann, QuantPreTrainedModel)
    check_twins(twin, snn)
    if data["dataset"] or data["data_dir"]:
        batches, split = data_batches(source, snn, data, samples, batch_size)
        about = f"samples of the {split} split"
    else:
        batches = random_batches(snn, samples, batch_size)
        about = "random inputs: give data to verify it on"
    certificate = Certificate.joined(
        [verify_equivalence(twin, snn, batch, time_steps) for batch in tqdm(batches, desc="verifying", unit="batch")]
    )
    return {
        "exact": certificate.exact,
        "certificate": str(certificate),
        "inputs": about,
        "samples": len(certificate.equilibrium_step),
        "equilibrium_step": certificate.equilibrium_step.tolist(),
        "mismatches": certificate.mismatches,
        "threshold_mismatches": list(certificate.threshold_mismatches),
        "logits_equal": certificate.logits_equal,
        "time_steps": certificate.time_steps,
    }


def card(folder: Path, results: Path | None, name: str | None, **metadata: Any) -> dict[str, Any]:
    """Write the card of a checkpoint anew.

    Raises:
        FileExistsError: somebody has written the card that is there.
        ValueError, OSError: it is no checkpoint of this library, or the results are not of it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder with a checkpoint.")
    path = folder / CARD
    if path.is_file() and not is_generated(path):
        raise FileExistsError(f"{path} was written by somebody: remove it to have one made.")
    model = load_twin(str(folder), TwinPreTrainedModel)
    write_card(model, folder, results=results, name=name, **metadata)
    return {"card": str(path)}


def push(folder: Path, repo_id: str, tags: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    """Push a checkpoint's folder; its card is made for `repo_id`, if nobody has written it.

    Raises:
        ValueError, OSError: it is no checkpoint of this library, or the Hub refuses.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder with a checkpoint.")
    model = load_twin(str(folder), TwinPreTrainedModel)  # refuses what nobody could load
    # What is known of other weights, which were here before, stays here.
    stale = [] if results_of(model, None, folder) else [name for name in os.listdir(folder) if RESULTS.fullmatch(name)]
    with tempfile.TemporaryDirectory() as aside:
        write_card(model, aside, destination=folder, name=repo_id.rpartition("/")[2], repo_id=repo_id)
        commit = push_folder(folder, repo_id, overlay=aside, exclude=stale, tags=[*tags_of(model), *tags], **options)
    revision = options.get("revision")
    url = str(commit.repo_url) + (f"/tree/{revision}" if revision else "")
    return {"url": url, "commit": commit.oid, "pull_request": commit.pr_url}


def describe(source: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """What a checkpoint is: as a dict, and as text.

    A folder is loaded, so that its weights are known to be whole; of a Hub id only small files are downloaded.
    """
    cls, config = class_of(source, revision)
    local = os.path.isdir(source)
    if local:
        model = cls.from_pretrained(source)
    else:
        with torch.device("meta"):
            model = cls(config)
    spiking = issubclass(cls, SpikePreTrainedModel)
    answer: dict[str, Any] = {
        "checkpoint": source,
        "class": cls.__name__,
        "source_model": config.source_model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "labels": list(config.id2label.values()) if cls._auto_class != AutoModel.__name__ else None,
        "quantization_levels": config.quantization_levels,
        "scale_granularity": config.scale_granularity,
        "weight_bits": config.weight_bits,
        "nodes": len(model.nodes),
        "node_names": model.node_names,
        "weights": whole_weights(Path(source)) if local else "not downloaded",
    }
    if spiking:
        answer |= {
            "time_steps": config.time_steps,
            "max_spikes_per_step": config.max_spikes_per_step,
            "firing_schedule": config.firing_schedule,
            "firing_window": config.firing_window,
            "firing_steps": config.firing_steps,
            "fine_steps": config.fine_steps,
        }
    answer["evaluations"] = evaluations(source, revision, model if local else None, getattr(config, "time_steps", 0))
    lines = [
        f"{key}: {value}"
        for key, value in answer.items()
        if key not in ("evaluations", "node_names", "firing_steps", "fine_steps")
    ]
    for one in answer["evaluations"]:
        lines.append(f"{one['data']}, {one['split']} split: {one['certificate']}")
        if spiking:
            lines.append(f"  {one['equilibrium']}")
        lines += [f"  {name}: {value:.2%}" for name, value in one["accuracy"].items()]
    if not answer["evaluations"]:
        lines.append("certificate: none on record (spikezip verify, spikezip evaluate)")
    return answer, "\n".join(lines)


def whole_weights(folder: Path) -> str:
    """What is known of a folder's weights, which were loaded."""
    sealed = [check_seal(path) for path in folder.glob("model*.safetensors")]
    return "whole, as they were written" if all(sealed) else "without a digest: whether they were altered is unknown"


def evaluations(
    source: str, revision: str | None, model: TwinPreTrainedModel | None, time_steps: int
) -> list[dict[str, Any]]:
    """What is on record of a checkpoint's answers; of a local one, only if it is of these very weights."""
    path = find_file(source, FILE, **({} if revision is None else {"revision": revision}))
    if path is None:
        return []
    try:
        known = read_results(path)
    except ValueError:
        return []
    if model is not None:
        digest = network_digest(model)
        known = [one for one in known if one.get("network_digest") == digest]
    return [
        {
            "data": one["data"],
            "split": one["split"],
            "samples": one["simulated"]["samples"],
            "certificate": one["simulated"].get("certificate", "none on record"),
            "equilibrium": equilibrium_line(one["simulated"], time_steps),
            "accuracy": {
                row["network"] if row["T"] == "-" else f"SNN, T = {row['T']}": row["accuracy"]
                for row in one["simulated"]["rows"]
            },
        }
        for one in known
    ]
