"""Grids of pretrainings and transfers, with statistics over seeds."""
