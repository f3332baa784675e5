"""Padding that nobody sees: a text has the same levels, spikes, T_eq and answer whatever stands beside it."""

import pytest
import torch

from tests.conftest import (
    ARCHITECTURES,
    make_text_ann,
    make_text_qann,
    make_texts,
    spiking_twin,
    text_class,
    tie_distances,
)

LENGTHS = [12, 3, 7, 1]
pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def spiking(qann):
    return spiking_twin(qann, time_steps=1000)


def own(levels: torch.Tensor, row: int, where: slice) -> torch.Tensor:
    """Levels of one text's own tokens, out of a node's (B, features), (B, N, features) or (B, heads, N, N)."""
    one = levels[row]
    if one.dim() == 1:
        return one
    return one[where] if one.dim() == 2 else one[:, where, where]


class TestPaddingIsInvisible:
    @pytest.fixture
    def qann(self, architecture):
        return make_text_qann(architecture, dtype=torch.float64)

    @pytest.fixture
    def snn(self, qann):
        return spiking(qann)

    @pytest.mark.parametrize("execution", ["cumulative", "event"])
    @pytest.mark.parametrize(
        ("side", "extra"),
        [("right", 40), ("left", 0)]
        + [
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("right", 0), ("right", 5), ("left", 5), ("left", 40))
        ],
    )
    def test_a_text_alone_and_in_a_padded_batch(self, snn, side, extra, execution):
        texts = make_texts(snn.config, LENGTHS, side=side, extra=extra)
        together = snn.trajectory(**texts, execution=execution, output_time_steps=True)
        for row, length in enumerate(LENGTHS):
            total = texts["input_ids"].shape[1]
            where = slice(0, length) if side == "right" else slice(total - length, total)
            one = {key: value[row : row + 1, where] for key, value in texts.items()}
            alone = snn.trajectory(**one, execution=execution, output_time_steps=True)
            assert torch.equal(alone.equilibrium_step, together.equilibrium_step[row : row + 1])
            assert torch.equal(alone.spike_counts, together.spike_counts[row : row + 1])
            assert torch.equal(alone.neuron_counts, together.neuron_counts[row : row + 1])
            for name, levels in alone.levels.items():
                assert torch.equal(levels[0], own(together.levels[name], row, where)), name
                # And nothing at all beside its own tokens.
                assert int(levels[0].abs().sum()) == int(together.levels[name][row].abs().sum()), name
            assert torch.allclose(alone.per_step[0], together.per_step[row], rtol=0, atol=1e-10)

    @pytest.mark.parametrize(
        "kind",
        [
            *(pytest.param(kind, marks=pytest.mark.slow) for kind in (torch.int32, torch.uint8)),
            torch.bool,
            torch.float32,
        ],
    )
    def test_type_of_the_mask(self, qann, snn, kind):
        texts = make_texts(snn.config, LENGTHS)
        expected, logits = snn(**texts), qann(**texts).logits
        texts["attention_mask"] = texts["attention_mask"].to(kind)
        out = snn(**texts)
        assert torch.equal(out.logits, expected.logits)
        assert torch.equal(out.spike_counts, expected.spike_counts)
        assert torch.equal(qann(**texts).logits, logits)

    def test_mask_left_out(self, qann, snn):
        for lengths in ([6, 6], LENGTHS):  # nothing padded; or padding that its id gives away
            texts = make_texts(snn.config, lengths)
            expected = snn(**texts)
            del texts["attention_mask"]
            out = snn(**texts)
            assert torch.equal(out.logits, expected.logits)
            assert torch.equal(out.spike_counts, expected.spike_counts)
            assert torch.equal(qann(**texts).logits, expected.logits)

    def test_what_stands_at_padding_does_not_matter(self, qann, snn):
        texts = make_texts(snn.config, LENGTHS)
        garbage = dict(texts)
        garbage["input_ids"] = torch.where(texts["attention_mask"] == 1, texts["input_ids"], 17)
        garbage["token_type_ids"] = torch.where(texts["attention_mask"] == 1, texts["token_type_ids"], 1)
        assert torch.equal(snn(**garbage).logits, snn(**texts).logits)
        assert torch.equal(snn(**garbage).spike_counts, snn(**texts).spike_counts)
        assert torch.equal(qann(**garbage).logits, qann(**texts).logits)

    def test_counts_of_neurons(self, snn):
        counts = snn(**make_texts(snn.config, [5, 3], extra=4)).neuron_counts
        column = {name: counts[:, index].tolist() for index, name in enumerate(snn.node_names)}
        assert column["embeddings.norm_node"] == [5 * 32, 3 * 32]
        assert column["encoder.layer.1.intermediate.hidden_node"] == [5 * 48, 3 * 48]
        assert column["encoder.layer.1.attention.self.probs_node"] == [4 * 5 * 5, 4 * 3 * 3]
        assert column[snn.node_names[-1]] == [32, 32]

    def test_calibration(self, architecture):
        ann = make_text_ann(architecture, dtype=torch.float64)
        for method in ("mse", "lsq"):
            scales = []
            for extra, side in ((0, "right"), (9, "right"), (9, "left")):
                qann = text_class("Quant", architecture).from_ann(ann, quantization_levels=16)
                qann.calibrate([make_texts(ann.config, LENGTHS, extra=extra, side=side)], method)
                scales.append(torch.cat([node.scale.detach() for node in qann.nodes]))
            # float64 sums of other lengths; stored in float32
            assert torch.allclose(scales[0], scales[1], rtol=1e-6)
            assert torch.allclose(scales[0], scales[2], rtol=1e-6)

    def test_gradients(self, architecture):
        grads = []
        for extra, side in ((0, "right"), (6, "left")):
            qann = make_text_qann(architecture, dtype=torch.float64).train()
            texts = make_texts(qann.config, LENGTHS, extra=extra, side=side)
            qann(**texts, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
            grads.append({name: p.grad for name, p in qann.named_parameters() if p.grad is not None})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[0].items():
            assert torch.allclose(grad, grads[1][name], rtol=1e-9, atol=1e-12), name  # order of float64 sums

    def test_float32_differences_come_from_a_tie(self, architecture):
        """In float32 a level may depend on the batch; then some node's input stood at a tie, and that is shown."""
        qann = make_text_qann(architecture, levels=32)
        snn, lengths = spiking(qann), [3 + i % 10 for i in range(24)]
        texts = make_texts(qann.config, lengths)
        together = snn.trajectory(**texts).levels
        nearest = tie_distances(qann, **texts)
        for row in range(0, 24, 3):
            where = slice(0, lengths[row])
            alone = snn.trajectory(**{key: value[row : row + 1, where] for key, value in texts.items()}).levels
            for name in together:
                differs = alone[name][0] != own(together[name], row, where)
                if bool(differs.any()):  # the first node that differs: its own input is at a tie to float32's rounding
                    assert float(own(nearest[name], row, where)[differs].max()) < 1e-4
                    break
