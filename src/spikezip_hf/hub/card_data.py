"""Metadata of a model card: what the Hub and its search read."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

TAGS = ("spikezip-tf", "spikezip_hf")
SPIKING_TAGS = ("spiking-neural-network", "snn", "neuromorphic")
QUANTIZED_TAGS = ("quantization-aware-training",)
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
        fields: any of `ModelCardData`'s (`license`, `language`, `datasets`, ...), which count more than what is
            derived; `tags` are added.
    """

    def __init__(self, model: PreTrainedModel, name: str, results: Sequence[Mapping[str, Any]], **fields: Any):
        task = pipeline_of(model)
        entries = [entry for one in results for entry in model_index(model, task, one)]
        derived = {
            "library_name": "transformers",
            "pipeline_tag": task,
            "base_model": model.config.source_model,
            "base_model_relation": "quantized" if model.config.source_model else None,
            "datasets": list(dict.fromkeys(one["dataset"] for one in results if one.get("dataset"))) or None,
            "metrics": ["accuracy"] if results else None,
            "model_name": name if entries or fields.get("eval_results") else None,
            "eval_results": entries or None,
        }
        given = {key: value for key, value in fields.items() if value}
        tags = [*tags_of(model), *given.pop("tags", [])]
        super().__init__(**{**derived, **given, "tags": tags})


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
        whole = results.get("accuracy on the whole split", {}).get("QANN")
        values = [row["accuracy"] for row in figures["rows"] if row["network"] == "QANN"]
        return [EvalResult(**about, metric_name="accuracy", metric_value=values[0] if whole is None else whole)]
    entries = []
    for row in figures["rows"]:
        if row["network"] != "SNN":
            continue
        settled = row["T"] == "equilibrium"
        arguments = {"time_steps": figures["T"] if settled else row["T"], "samples": figures["samples"]}
        entries.append(
            EvalResult(
                **about,
                metric_name="accuracy at equilibrium" if settled else f"accuracy after {row['T']} time-steps",
                metric_value=row["accuracy"],
                metric_args={**arguments, "stop": "equilibrium" if settled else "never"},
            )
        )
    return entries
