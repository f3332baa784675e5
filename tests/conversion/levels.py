"""Levels of nodes, ours and those of networks in the reference's layout, in one shape."""

import torch


@torch.no_grad()
def node_levels(qann, inputs) -> dict[str, torch.Tensor]:
    """{node: levels} of our network in a forward pass."""
    levels, hooks = {}, []
    for node in qann.nodes:
        hooks.append(
            node.register_forward_hook(
                lambda module, args, output: levels.update({module.name: (output.values / module.scale).round()})
            )
        )
    qann(**inputs)
    for hook in hooks:
        hook.remove()
    return levels


def scale_source(report, name: str) -> str:
    """Where the file has the scale of a node of ours, without the `.s`."""
    source = next(source for ours, source in report.mapped.items() if ours.endswith(f"{name}.scale"))
    return source.removesuffix(".s")


def assert_equal_levels(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], report, tokens=None) -> None:
    """Levels of every node are equal, at places that hold `tokens` (B, N)."""
    assert len(ours) == len(theirs)
    for name, levels in ours.items():
        source = scale_source(report, name)
        expected = theirs[source]
        assert expected.unique().numel() > 3, f"{source} uses too few levels for the test to see a mistake"
        if levels.dim() == 3 and expected.dim() == 4:  # ours flattens patches or heads before it quantizes
            is_patches = source.startswith(("patch_embed", "align"))  # of a convolution
            expected = expected.flatten(2).transpose(1, 2) if is_patches else expected.transpose(1, 2).flatten(2)
        elif levels.dim() == 3 and expected.shape[1] != levels.shape[1]:  # ours looks at the first token alone
            expected = expected[:, :1]
        if tokens is not None and levels.dim() > 2:
            keep = (tokens[:, None, :, None] if levels.dim() == 4 else tokens[:, :, None]).bool()
            levels, expected = levels * keep, expected * keep
        # Equal, and not nearly so: with the seeds of these tests no value is within rounding of a tie.
        assert torch.equal(levels, expected.to(levels)), name
