"""What the experiments share: data, models, training, evaluation and reports."""
