"""What a model knows after each domain: scores of examples, and the metrics of the R matrix.

``matrix`` and ``summary`` need no torch; ``scores`` runs the model.
"""
