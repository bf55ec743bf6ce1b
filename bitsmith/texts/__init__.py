"""Texts that users name, for `eval` and for calibration: plain text, chats and other records, data sets of the hub.

sources    what a name means -> a text's name, its hash and its documents
entries    JSON lines, JSON arrays and parquet files, one record after the other
records    the shapes of records that are known -> a text or a chat
hub        files of data sets on the Hugging Face hub
tokens     documents -> token ids
"""
