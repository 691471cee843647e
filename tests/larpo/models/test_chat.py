"""Gold responses in the policy's tokens."""

from larpo.models.chat import end_tokens, gold_token_ids, turn_end
from larpo.models.load import load_tokenizer


def test_solution_and_end_token(tiny_policy):
    """The tiny tokenizer: <unk> 0, <eos> 1, three roles, then the digits from 5 on; it knows no letter."""
    tokenizer = load_tokenizer(tiny_policy)
    end = turn_end(tokenizer, end_tokens(tiny_policy, tokenizer))
    assert end == 1
    assert gold_token_ids(tokenizer, ["42", "4 apples"], end) == [[9, 7, 1], None]


def test_the_end_token_is_what_the_template_writes(tiny_policy):
    """As with Gemma: turns end with another token than the text's end, and both end a response."""
    tokenizer = load_tokenizer(tiny_policy)
    user = tokenizer.convert_tokens_to_ids("<user>")
    tokenizer.chat_template = "{% for m in messages %}<system>{{ m['content'] }}<user>{% endfor %}"
    assert turn_end(tokenizer, [1, user]) == user
    # A template that writes no end leaves the tokenizer's.
    assert turn_end(tokenizer, [1]) == 1


def test_solutions_that_differ_in_length_are_not_padded(tiny_policy):
    tokenizer = load_tokenizer(tiny_policy)
    assert [len(ids) for ids in gold_token_ids(tokenizer, ["1", "1 + 1 = 2"], 1)] == [2, 10]
