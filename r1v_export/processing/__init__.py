"""Images and a conversation into a model's inputs, and tokens back into text: numpy, Pillow and tokenizers only."""
