"""`glm bench peers`: this package, llama.cpp and transformers on one slice of a model, in turn in one run.

slices       the shapes that are measured, and files of random weights in them
gguf_file    the same weights as GGUF, in llama.cpp's formats (runs in llama.cpp's environment)
job          what a worker is asked and what it answers; the one module that all of them import
*_worker     one engine each, a process of its own, started anew for every turn
environments where each engine is installed, isolated and pinned
run          who is measured when; what has been measured is kept and not measured again
report       medians, ratios, floors: Markdown, JSON and a plot
"""
