"""What binds a folder to a training: its record, its settings, its whole checkpoints."""

import pytest

from spikezip_hf.recipes import stage
from spikezip_hf.training import QATTrainingArguments


def test_failed_start_leaves_the_folder_free(tmp_path):
    """Settings bind a folder from its first whole checkpoint on, not from a training that broke before it had one."""
    (tmp_path / "settings.json").write_text('{"seed": 3}')
    (tmp_path / "checkpoint-2").mkdir()  # killed as it was written
    assert not stage.is_finished(tmp_path, {"seed": 4})
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a training with seed 3, not 4"):
        stage.is_finished(tmp_path, {"seed": 4})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="checkpoints of a training that was not started here"):
        stage.is_finished(tmp_path, {"seed": 4})


def test_what_counts_is_the_total_batch():
    settings = [
        stage.settings_of(
            QATTrainingArguments(
                "out", use_cpu=True, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size
            )
        )
        for size in (4, 8)
    ]
    assert settings[0] == settings[1]
    assert settings[0]["total_train_batch_size"] == 16
