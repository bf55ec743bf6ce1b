"""Training: adapters over a quantized model (`tune qlora`), and quantization-aware training (`tune qat`).

config     all options
examples   records, chats and texts -> token ids, and which of them are learned
batches    examples -> batches, packed or padded
base       the frozen model that adapters stand on
adapters   which layers get adapters; the adapter's files in PEFT's layout
lora_layer the layer of PEFT for our packed linear
training   steps of transformers' Trainer, with checkpoints, progress, and a stop at a loss that is not finite
gguf_lora  an adapter as llama.cpp reads it
merged     a model with an adapter added to its weights, as they are read
merge      an adapter into the original, and quantized
qlora      a whole run, from options to a finished adapter
"""
