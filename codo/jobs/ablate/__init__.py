"""The ablation job: a grid of rows, protocols and seeds; its plan, its run, its results."""
