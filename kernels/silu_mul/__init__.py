"""The gated activation between the two products of an FFN."""
