"""The dense FFN block of a decoder layer: what does it cost, fused or product by product?"""
