"""What a Trainer knows of a training, for the model card."""

from typing import Any

from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers.modelcard import TrainingSummary, make_markdown_table


def training_text(summary: TrainingSummary) -> str:
    """Hyperparameters and evaluations, in Markdown."""
    settings = [f"- {name}: {value}" for name, value in (summary.hyperparameters or {}).items()]
    parts = ["Quantization-aware training with `QATTrainer`:", "\n".join(settings)]
    if summary.eval_lines:
        parts.append(make_markdown_table(summary.eval_lines).strip())
    return "\n\n".join(parts)


def card_fields(summary: TrainingSummary) -> dict[str, Any]:
    """Arguments of `hub.write_card`; what is not known is None."""
    metadata = summary.create_metadata()
    _, evaluations = model_index_to_eval_results(metadata["model-index"])
    return {
        "name": summary.model_name,
        "training": training_text(summary),
        "language": metadata.get("language"),
        "license": metadata.get("license"),
        "datasets": metadata.get("datasets"),
        "base_model": metadata.get("base_model"),
        "tags": ["quantization-aware-training", *(metadata.get("tags") or [])],
        "metrics": metadata.get("metrics"),
        "eval_results": evaluations,
    }
