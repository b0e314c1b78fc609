"""Where builds run: images and one-off containers without network, privileges or root."""
