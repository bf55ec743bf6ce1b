"""The operations of a decoder and the quantized linear; torch is the reference."""
