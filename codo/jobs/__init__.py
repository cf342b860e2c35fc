"""The jobs made of the parts. In a folder of their own, so that `codo.pretrain` can be the function."""
