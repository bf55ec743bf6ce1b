"""`bitsmith compare`: many quantized files of one model on the same tokens, beside the original.

running           one run from the names to the result
candidates        what is compared: files that are there, and those that are made
texts             the domains: texts, windows, and what each token belongs to
reference_logits  the original's predictions, computed once and kept
scores, measure   what one model does on each token
statistics        means with errors, over documents; ties
ledger            all measurements, kept
result            the finished comparison; `verdict` says it in words
"""
