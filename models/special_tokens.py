"""The special tokens that every vocabulary begins with: ids and names. Plain Python, so that datasets may import it."""

PADDING, UNKNOWN, BEGIN, END = range(4)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")  # by id; END also separates two texts of one row
FIRST_WORD = len(SPECIAL_TOKENS)  # the lowest id of an ordinary token
