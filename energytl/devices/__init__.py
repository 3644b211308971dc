"""Physics of one memory cell: equations as functions of tensors, and frozen records of parameters."""
