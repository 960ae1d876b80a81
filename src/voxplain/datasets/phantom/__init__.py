"""Phantom chests, in the order of the job.

`anatomy`  the healthy chest
`findings`  what can be wrong with it, with exact masks
`cases`  a seed in, a case out; splits
`lexicon`  the words of the impressions
`wording`  words to sentences
`impressions`  a case in, a text out, every mention tied to its mask
"""
