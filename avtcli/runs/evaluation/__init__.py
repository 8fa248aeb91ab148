"""What an evaluation is made of: the decoder's figures, the ridge reading, the protocol and the picture."""
