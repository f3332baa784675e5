"""Energy of a simulated network beside its twins, the paper's power, and the arithmetic of the paper's tables."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.analysis.energy import PARTS, SPIKE_DRIVEN, energy
from spikezip_hf.analysis.energy_prices import EnergyConstants, level_bits
from spikezip_hf.analysis.operations import KINDS, count_operations
from spikezip_hf.analysis.paper_power import (
    fan_in_conv,
    paper_power_w,
    paper_tables,
    post_synaptic_spikes,
    power_w,
    pre_synaptic_spikes,
)
from tests.conftest import make_ann, make_images, make_text_qann, make_texts, spiking_twin

ROWS = ["ANN", "QANN", "QANN INT8", "SNN"]


def make_snn(weight_bits=None, levels=32):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=levels, weight_bits=weight_bits)
    qann.calibrate([{"pixel_values": make_images(qann.config, 16, seed=1)}])
    return spiking_twin(qann, time_steps=300)


@pytest.fixture(scope="module")
def snn():
    return make_snn()


@pytest.fixture(scope="module")
def operations(snn):
    return count_operations(snn, {"pixel_values": make_images(snn.config, 3)})


class TestConstants:
    def test_multiply_adds_of_the_literature(self):
        c = EnergyConstants()
        assert c.fp32_multiply_add_pj == pytest.approx(4.6)
        assert c.multiply_add_pj(8, 8) == pytest.approx(0.23)
        assert c.multiply_add_pj(24, None) == pytest.approx(4.6)  # a level as wide as a significand
        assert c.multiply_add_pj(5, 8) == pytest.approx(0.2 * 40 / 64 + 0.03)
        assert c.multiply_add_pj(5, None) == pytest.approx(3.7 * 5 / 24 + 0.9)
        assert EnergyConstants(integer_add_pj=0.1).multiply_add_pj(8, 8) == pytest.approx(0.3)
        assert [level_bits(levels) for levels in (4, 8, 32, 34, 256)] == [2, 3, 5, 6, 8]

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much", None])
    def test_what_is_no_price_is_refused_by_name(self, value):
        with pytest.raises(ValueError, match="fp32_add_pj"):
            EnergyConstants(fp32_add_pj=value)

    def test_a_step_takes_time(self):
        with pytest.raises(ValueError, match="step_seconds"):
            EnergyConstants(step_seconds=0)


class TestPaper:
    def test_equations(self):
        assert power_w(4.8e9) == pytest.approx(4.32)  # Eq. 6: 4.8e9 activities a step are 4.32 W, RoBERTa-L's row
        assert power_w(1e9, EnergyConstants(spike_pj=2.0, step_seconds=0.5e-3)) == pytest.approx(4.0)
        assert post_synaptic_spikes(0.25, 1000) == 250
        assert fan_in_conv(3, 16, 16) == 768
        # A4: with R = 1 a convolution delivers C_in K K C_out O O.
        assert pre_synaptic_spikes(1, fan_in_conv(3, 4, 4), 8 * 2 * 2) == 3 * 4 * 4 * 8 * 2 * 2
        assert pre_synaptic_spikes(0.5, 32, 48) == 0.5 * 32 * 48  # A5

    def test_power_of_a_network_by_rates_and_fan_in(self, snn, operations):
        """A1, A2 and A6 written out, from the rates of the model's default simulation."""
        out = copy.deepcopy(snn).double()(make_images(snn.config, 3).double())
        steps = operations.steps.double().mean()
        neurons = dict(zip(snn.node_names, out.neuron_counts.double().mean(0).tolist()))
        rates = dict(zip(snn.node_names, (out.spike_counts.double().mean(0) / steps).tolist()))
        rates = {name: rate / neurons[name] for name, rate in rates.items()}
        post = sum(post_synaptic_spikes(rates[name], neurons[name]) for name in neurons)
        pre = 0.0
        for layer in ("layers.0", "layers.1"):
            before, after = f"{layer}.layernorm_before_node", f"{layer}.layernorm_after_node"
            for name in ("q", "k", "v"):
                pre += pre_synaptic_spikes(rates[before], 32, neurons[f"{layer}.attention.{name}_node"])
            pre += pre_synaptic_spikes(
                rates[f"{layer}.attention.context_node"], 32, neurons[f"{layer}.attention.output_node"]
            )
            pre += pre_synaptic_spikes(rates[after], 32, neurons[f"{layer}.mlp.hidden_node"])
            pre += pre_synaptic_spikes(rates[f"{layer}.mlp.hidden_node"], 48, neurons[f"{layer}.mlp.output_node"])
        # The head listens to the class token alone, which has a rate of its own: taken from the count.
        head = next(e for e in operations.entries if (e.module, e.kind) == ("classifier", "weights"))
        pre += float(head.count.double().mean() / steps)
        assert paper_power_w(operations) == pytest.approx(power_w(pre + post), rel=1e-9)
        assert paper_power_w(operations, sesa=True) > paper_power_w(operations)

    def test_idle_steps_lower_power_and_not_energy(self, snn, operations):
        longer = count_operations(snn, {"pixel_values": make_images(snn.config, 3)}, 100, stop="never")
        assert paper_power_w(longer) < 0.5 * paper_power_w(operations)
        for part in ("weights", "attention"):
            assert energy(longer).snn.of(PARTS[part]) == energy(operations).snn.of(PARTS[part])
        assert energy(longer).snn.energy_j > energy(operations).snn.energy_j

    def test_tables(self):
        rows = {(row["table"], row["network"], row["kind"], row["data"]): row for row in paper_tables()}
        assert len(rows) == len(paper_tables()) == 24
        quantized = rows["A1", "SpikeZIP-TF Swin-T", "QANN", "ImageNet"]
        spiking = rows["A1", "SpikeZIP-TF Swin-T", "SNN", "ImageNet"]
        assert quantized["multiply_adds"] == pytest.approx(20.17e-3 / 4.6e-12)  # 4.38e9; Swin-T is 4.5e9
        assert spiking["spikes_per_step"] == pytest.approx(1.363e-3 / 0.9e-12)
        assert quantized["power_w"] / spiking["power_w"] == pytest.approx(14.8, abs=0.05)
        assert spiking["inference_j"] / quantized["inference_j"] == pytest.approx(4.32, abs=0.01)
        assert rows["8", "SpikeZIP-TF 355M", "SNN", "SST-2"]["spikes_per_step"] == pytest.approx(4.8e9)


class TestReport:
    def test_energy_by_hand(self, operations):
        t = operations.totals()

        def count(kind):
            return t[kind]["count"]

        def dense(kind):
            return t[kind]["dense"]

        layernorm, softmax = 3 * 3.7 + 4 * 0.9, 5 * 3.7 + 7 * 0.9
        sesa = count("SESA S_A B") + count("SESA A S_B") + count("SESA A B")
        snn = 4.6 * count("input product") + 0.9 * (count("weights") + count("bias") + count("residual"))
        snn += 0.03 * sesa + 0.9 * count("membrane update") + 0.93 * count("spike")
        snn += (layernorm + 0.9) * count("LayerNorm") + (softmax + 0.9) * count("softmax")
        same = 0.9 * (dense("bias") + dense("residual")) + layernorm * dense("LayerNorm") + softmax * dense("softmax")
        ann = 4.6 * (dense("input product") + dense("weights") + dense("SESA A B")) + same
        level_by_float, level_by_level = 3.7 * 5 / 24 + 0.9, 0.2 * 25 / 64 + 0.03
        same += 4.6 * operations.neurons.double().mean().item()  # quantizers
        qann = 4.6 * dense("input product") + level_by_float * dense("weights") + level_by_level * dense("SESA A B")
        int8 = 0.23 * (dense("input product") + dense("weights") + dense("SESA A B"))
        report = energy(operations)
        assert [one.network for one in report.networks] == ROWS
        expected = [ann, qann + same, int8 + same, snn]
        assert [one.energy_j for one in report.networks] == pytest.approx([1e-12 * value for value in expected])

    def test_integer_weights_make_integer_additions(self):
        snn = make_snn(weight_bits=8)
        operations = count_operations(snn, {"pixel_values": make_images(snn.config, 2)})
        totals, report = operations.totals()["weights"], energy(operations)
        assert report.snn.compute_j["weights"] == pytest.approx(0.03e-12 * totals["count"])
        assert report.qann.compute_j["weights"] == pytest.approx((0.2 * 40 / 64 + 0.03) * 1e-12 * totals["dense"])
        assert report.ann.compute_j["weights"] == pytest.approx(4.6e-12 * totals["dense"])
        assert "5-bit x 8-bit" in str(report)

    def test_where_a_node_has_many_scales_sums_are_floating(self):
        qann = make_text_qann("bert", granularity="per_channel")
        snn = spiking_twin(qann, time_steps=300)
        operations = count_operations(snn, make_texts(snn.config, [5, 3]))
        report, t = energy(operations), operations.totals()
        # Queries and keys have a scale for each channel; probabilities have one, but values have not.
        assert not any(entry.integer for entry in operations.entries)
        assert report.snn.compute_j["SESA S_A B"] == pytest.approx(0.9e-12 * t["SESA S_A B"]["count"])
        assert "4-bit x FP32 multiply-adds, in attention 4-bit x FP32" in str(report)
        assert "input product" not in t  # a text has none

    @pytest.mark.parametrize("products_only", [False, True])
    def test_at_the_break_even_rate_energies_are_equal(self, operations, products_only):
        # Cheap LayerNorm and softmax, so that there is a rate at which all of it breaks even.
        constants = EnergyConstants(
            layernorm_multiplies=0, layernorm_adds=0, softmax_multiplies=0, softmax_adds=0, int8_multiply_pj=9.0
        )
        operations = replace(
            operations,
            entries=tuple(
                replace(e, count=e.dense) if e.kind in ("membrane update", "LayerNorm", "softmax") else e
                for e in operations.entries
            ),
        )
        report = energy(operations, constants)
        rates = report.break_even(products_only)
        assert list(rates) == ROWS[:-1]
        kinds = (*PARTS["weights"], *PARTS["attention"]) if products_only else KINDS
        for one, rate in zip(report.networks, rates.values()):
            assert rate is not None
            factor = rate / operations.spikes_per_neuron
            scaled = tuple(
                replace(e, count=e.count.double() * factor) if e.kind in SPIKE_DRIVEN else e
                for e in operations.entries
            )
            spikes = operations.spikes.double() * factor
            at_rate = energy(replace(operations, entries=scaled, spikes=spikes), constants)
            assert at_rate.operations.spikes_per_neuron == pytest.approx(rate)
            assert at_rate.snn.of(kinds) == pytest.approx(one.of(kinds))

    def test_no_rate_breaks_even_where_the_rest_takes_more(self, operations):
        constants = EnergyConstants(layernorm_multiplies=1e6)
        assert set(energy(operations, constants).break_even().values()) == {None}
        assert None not in energy(operations, constants).break_even(products_only=True).values()

    def test_a_table_always_has_all_four(self, operations):
        report = energy(operations)
        rows = report.table()
        assert [row["network"] for row in rows] == ROWS
        assert json.loads(json.dumps(rows)) == rows
        for row in rows:
            parts = sum(value for name, value in row.items() if name.endswith("_j") and name != "energy_j" and value)
            assert parts == pytest.approx(row["energy_j"])
            assert row["snn_energy_over_this"] == pytest.approx(rows[-1]["energy_j"] / row["energy_j"])
        lines = str(report).splitlines()
        assert lines[1].split() == ["ANN", "QANN", "QANN", "INT8", "SNN"]
        assert len({len(line) for line in lines[1:10]}) == 1  # aligned
        assert {kind for kinds in PARTS.values() for kind in kinds} == set(KINDS)

    def test_memory_is_off_unless_asked_for(self, operations):
        without, with_memory = energy(operations), energy(operations, memory=True)
        assert "memory traffic" in str(without)
        assert without.table()[0]["memory_j"] is None
        for plain, loaded in zip(without.networks, with_memory.networks):
            assert loaded.compute_j == plain.compute_j
            assert loaded.energy_j > plain.energy_j
        t, per_byte = operations.totals(), 24.96e-12
        assert with_memory.snn.memory_j["weights"] == pytest.approx(4 * per_byte * t["weights"]["count"])
        assert with_memory.ann.memory_j["weights"] == pytest.approx(8 * per_byte * t["weights"]["dense"])
        assert with_memory.qann.memory_j["weights"] == pytest.approx((5 / 8 + 4) * per_byte * t["weights"]["dense"])
        assert with_memory.snn.memory_j["membrane update"] == pytest.approx(
            8 * per_byte * t["membrane update"]["count"]
        )

    def test_it_says_so_where_the_answer_is_not_the_quantized_networks(self, snn, operations):
        assert "is not the QANN's" not in str(energy(operations))
        short = count_operations(snn, {"pixel_values": make_images(snn.config, 2)}, 3)
        assert "is not the QANN's" in str(energy(short))
        assert torch.equal(short.steps, torch.tensor([3, 3]))

    def test_other_things_are_refused(self, snn):
        with pytest.raises(TypeError, match="count_operations"):
            energy(snn)
