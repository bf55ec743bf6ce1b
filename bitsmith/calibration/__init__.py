"""Calibration: its tokens, the pass that collects statistics, and importance files.

sources    text files, chats, data sets of the hub, the model's own text -> windows of tokens
hidden     the hidden states of all windows, in memory or on disk
collect    one pass over the original model, block by block -> Stats of every linear's input
imatrix    reads and writes both formats of llama.cpp's importance files
importance importance of columns, from a pass or from an importance file
"""
