"""A matrix on arrays of finite size: how it is cut, and how the partial sums of each array are converted."""
