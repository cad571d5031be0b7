"""Before training: how likely does new data make a model forget old data, and what is advisable?"""
