"""Networks: layers as text, encoders and decoders of images, residual networks, the deep hierarchy."""
