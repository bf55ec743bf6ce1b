"""Calibration: where its tokens come from, the pass that collects statistics, importance files.

sources    text files, chats, data sets of the hub, the model's own text -> windows of tokens
hidden     the hidden states of all windows, in memory or on disk
collect    one pass over the original model, block by block -> Stats of every linear's input
imatrix    llama.cpp's importance files, both formats, in and out
importance what `quantize --calibration` takes from either
"""
