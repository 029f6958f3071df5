"""Survey: whether the data of a fleet is fit for training, from statistics of its devices."""
