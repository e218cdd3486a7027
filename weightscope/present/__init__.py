"""What is shown of each thing: figures, order and words, as data; one file per thing."""
