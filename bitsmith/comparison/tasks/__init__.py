"""Tasks: questions with known answers, asked of every model.

items      what a question is: choices, or an answer to write
naming     what the names in --tasks mean
files      MMLU's CSV layout and JSON lines -> items
made       questions made from a text: which continuation is the true one
answering  a model's answers: log-likelihoods in batches, greedy text
scores     how many answers are right, with Wilson's interval
harness    the same models for lm-eval (EleutherAI's harness)
"""
