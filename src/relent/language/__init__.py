"""The base that every method for language models stands on.

`batches` holds rows of tokens with the masks that belong to them, `tokenizers` small tokenisers trained by a rule,
`log_probs` log-probabilities from hidden states, `generation` batched sampling, `exact` the enumeration of all short
sequences and the optimum of a regularised reward among them. The networks are in `relent.models.causal_lm`.
"""
