"""Tensors in, tensors out: the recurrence for each kind of device, without autograd or modules."""
