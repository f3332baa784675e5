"""Metadata of a model card: what the Hub and its search read."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

TAGS = ("spikezip-tf", "spikezip_hf")
SPIKING_TAGS = ("spiking-neural-network", "snn", "neuromorphic")
QUANTIZED_TAGS = ("quantized",)  # trained so or calibrated only: whoever does it adds a tag
OUR_TAGS = (*TAGS, *SPIKING_TAGS, *QUANTIZED_TAGS)
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
}


def is_spiking(model: PreTrainedModel) -> bool:
    return model.config.model_type.startswith("spike_")


def tags_of(model: PreTrainedModel) -> list[str]:
    """Tags by which a model is found."""
    return [*TAGS, *(SPIKING_TAGS if is_spiking(model) else QUANTIZED_TAGS)]


def pipeline_of(model: PreTrainedModel) -> str:
    """The pipeline that a model is for; without a head, extraction of features."""
    for ending, task in PIPELINES.items():
        if type(model).__name__.endswith(ending):
            return task
    return "feature-extraction" if hasattr(model.config, "vocab_size") else "image-feature-extraction"


class SpikeCardData(ModelCardData):
    """Metadata of a Quant or Spike model, with its accuracies as model-index.

    Args:
        model: the model.
        name: its name.
        results: of `hub.results`. Those of the ordinary network stay in the text: they are another model's.
        kept: what stands where nothing else is known.
        fields: any of `ModelCardData`'s (`license`, `language`, `datasets`, ...), which count more than what is
            derived; `tags` are added.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        results: Sequence[Mapping[str, Any]],
        kept: Mapping[str, Any] | None = None,
        **fields: Any,
    ):
        task, source = pipeline_of(model), model.config.source_model
        entries = [entry for one in results for entry in model_index(model, task, one)]
        derived = {
            "library_name": "transformers",
            "pipeline_tag": task,
            "base_model": source,
            "base_model_relation": "quantized" if source else None,
            "metrics": ["accuracy"] if entries else None,
            "eval_results": entries or None,
        }
        kept = dict(kept or {})
        tags: list[str] = tags_of(model)
        for more in (kept.pop("tags", None), fields.pop("tags", None)):
            tags += [more] if isinstance(more, str) else more or []
        known = {
            key: value
            for part in (kept, derived, fields)
            for key, value in part.items()
            if value not in (None, [], "")
        }
        if known.get("eval_results"):
            known["model_name"] = name
        super().__init__(**{**known, "tags": list(dict.fromkeys(tags))})


def model_index(model: PreTrainedModel, task: str, results: Mapping[str, Any]) -> list[EvalResult]:
    """Accuracies of this model in the terms of the Hub; of an SNN, after T time-steps and once settled."""
    figures = results["simulated"]
    about = {
        "task_type": task,
        "dataset_type": results.get("dataset") or results["data"],
        "dataset_name": results["data"],
        "dataset_config": results.get("subset"),
        "dataset_split": results["split"],
        "metric_type": "accuracy",
    }
    if not is_spiking(model):
        values = [row["accuracy"] for row in figures["rows"] if row["network"] == "QANN"]
        values = [results.get("accuracy on the whole split", {}).get("QANN"), *values]
        return [
            EvalResult(**about, metric_name="accuracy", metric_value=value) for value in values if value is not None
        ][:1]
    entries = []
    for row in figures["rows"]:
        if row["network"] != "SNN":
            continue
        settled = row["T"] == "equilibrium"
        arguments = {"time_steps": figures.get("T") if settled else row["T"], "samples": figures["samples"]}
        entries.append(
            EvalResult(
                **about,
                metric_name="accuracy at equilibrium" if settled else f"accuracy after {row['T']} time-steps",
                metric_value=row["accuracy"],
                metric_args={**arguments, "stop": "equilibrium" if settled else "never"},
            )
        )
    return entries
