"""What a transfer run says of its protocol and its curve."""

from __future__ import annotations

from typing import Any

from codo.config.schedules import REFERENCE_BATCH

FRESH = ("missing", "reshaped", "left_out")
"""The kinds in coverage.json that were not loaded."""


def print_training(protocol: str, training: dict[str, Any]) -> None:
    """Say what is trained, what is frozen and how its norms behave, how long, and at which learning rates."""
    from codo.runs.console import console, warn

    lines = [f"protocol: {protocol}; norm {training['norm']}"]
    if training["frozen"]:
        mode = {"population": "their population statistics", "batch": "each batch's statistics"}
        lines[0] += f"; frozen: {', '.join(training['frozen'])}, norms there on {mode[training['frozen_norm']]}"
    parts = ", ".join(
        f"{name} {counts['trained'] / 1e6:.2f} of {sum(counts.values()) / 1e6:.2f} M"
        for name, counts in training["groups"].items()
        if sum(counts.values())
    )
    lines.append(f"trained: {training['trained_parameters'] / 1e6:.2f} M parameters ({parts})")
    accumulated = f" in {training['accumulate']} parts" if training["accumulate"] > 1 else ""
    falls = ", ".join(map(str, training["milestones"])) or "no step"
    lines.append(
        f"schedule: {training['steps']} steps of {training['batch_size']} images{accumulated} "
        f"({training['steps'] / training['steps_per_epoch']:.4g} epochs); lr {training['peak_lr']:.4g} "
        f"({training['lr']:.4g} at batch {REFERENCE_BATCH}) after {training['warmup_steps']} steps of warm-up, "
        f"a tenth after {falls}; evaluation every {training['evaluation_every']} steps"
    )
    console.print("\n".join(lines), markup=False)
    if 2 * training["warmup_steps"] > training["steps"]:
        warn(
            f"optim.warmup_iterations: {training['warmup_steps']} of {training['steps']} steps are warm-up; little is "
            f"trained at the full lr. A tenth of the schedule would be usual: {max(1, training['steps'] // 10)}"
        )


def warn_of_fresh(loaded: dict[str, Any], training: dict[str, Any]) -> None:
    """Say which frozen parts are random: a baseline if that is meant, and no probe of pretraining."""
    from codo.runs.console import warn

    groups = loaded["frozen_but_fresh"]
    if not groups:
        return
    text = f"frozen but not pretrained: {', '.join(groups)}; what of them was not loaded is random and stays so"
    fresh = [name for group in groups for kind in FRESH for name in loaded["groups"][group][kind]]
    if training["frozen_norm"] == "population" and any(name.endswith("running_mean") for name in fresh):
        text += ", their batch norms with the statistics that it has on the training images"
    warn(text)


def warn_of_misfits(loaded: dict[str, Any]) -> None:
    """Say which parts are in the file and yet fresh, and the settings with which they would fit."""
    from codo.runs.console import warn

    misfits = []
    for name, group in loaded["groups"].items():
        fresh = [*group["missing"], *group["reshaped"]]
        if group["reshaped"] or (group["missing"] and group["unexpected"]):
            misfits.append(f"{name} ({len(fresh)} of {len(fresh) + len(group['matched'])} tensors)")
    if not misfits:
        return
    widths = loaded["other_widths"]
    sets = " ".join(f"--set architecture.{name}={width}" for name, width in widths.items())
    warn(f"in the file, but fresh, as it does not fit: {', '.join(misfits)}{sets and f'; it would with {sets}'}")


def print_curve(summary: dict[str, Any]) -> None:
    """Say what the course of AP came to."""
    from codo.runs.console import console

    area, best = summary["curve_area"], summary["best"]
    if best:
        kept = "the end" if best["step"] == summary["steps"] else "best.safetensors"
        where = f"step {best['step']}, epoch {best['epoch']:.4g}, {kept}"
        console.print(f"curve: area {number(area)}, best AP {best['AP']:.1f} ({where})")
    reached = ", ".join(f"{level} after {step}" for level, step in summary["steps_to_ap"].items())
    if reached:
        console.print(f"AP reached, steps: {reached}")


def number(value: float | None) -> str:
    """Write a metric; None (nothing to find) as a dash."""
    return "-" if value is None else f"{value:.1f}"
