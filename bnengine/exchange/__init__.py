"""Networks handed over: folded for inference, and as weights and files that other libraries read and write."""
