"""The reference model's training: its texts, its batches, its file, and its network."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gguf_file, vocabulary
from reference.batches import FILL, LONGEST, NOISE_FILL, QUIET, Writer, gaps
from reference.drills import DRILLS
from reference.wordings import Text

from icecache_local import embedded

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "train_reference.py"
seeds = st.integers(0, 2**32)
sizes = st.sampled_from([256, 512, 1024, 2048])
# Logits of f16 weights with f16 keys and values against f32, where the largest is about 20.
LOGIT_TOLERANCE = 0.15


@pytest.fixture(scope="module")
def writer() -> Writer:
    """Makes batches with the embedded model's tokenizer."""
    return Writer(vocabulary.read(embedded.model_path()).tokenizer())


def whole(text: Text) -> str:
    """Text without filling, up to the first question."""
    return text.front + text.separator.join(text.needles)


def drawn(name: str, seed: int, size: int) -> Text:
    """A drill's text; the seed decides everything."""
    text = DRILLS[name](Random(seed), size)
    assert text == DRILLS[name](Random(seed), size)
    return text


# -- texts: the answers follow from the facts ------------------------------------------------


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_each_code_asked_for_stands_behind_its_name(seed, size) -> None:
    text = drawn("codes", seed, size)
    for question, (answer,) in text.turns:
        name = re.search(r"(?:of )?((?:[A-Z]\w+ ?)+)(?: is|\?|$)", question.replace("What", ""))
        own = [needle for needle in text.needles if f"{name.group(1).strip()} is" in needle]
        own = own or [n for n in text.needles if n.startswith(name.group(1).strip())]
        assert len(own) == 1
        assert own[0].endswith(answer.strip())


def facts(text: Text) -> list[tuple[str, str]]:
    """Keys and values of a text, in its order."""
    found = re.findall(r"([\w-]+(?: [\w-]+)*?) is: ([\w-]+)\.", "\n".join(text.needles))
    return [(re.sub(r"^One of .* for ", "", key), value) for key, value in found]


def asked(question: str) -> str:
    """What a question asks for."""
    short = re.fullmatch(r"\n(.*) is:", question)
    return short.group(1) if short else re.search(r"s? for (.*?) mentioned", question).group(1)


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_a_needle_is_the_only_value_of_its_key(seed, size) -> None:
    text = drawn("needle", seed, size)
    for question, (answer,) in text.turns:
        assert [v for k, v in facts(text) if k == asked(question)] == [answer.strip(" .")]


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_values_are_all_of_a_key_in_the_order_of_the_text(seed, size) -> None:
    text = drawn("values", seed, size)
    for question, answer in text.turns:
        own = [v for k, v in facts(text) if k == asked(question)]
        assert len(own) >= 2
        assert answer == [f" {i}. {value}" for i, value in enumerate(own, 1)]


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_queries_are_answered_key_by_key(seed, size) -> None:
    text = drawn("queries", seed, size)
    known = dict(facts(text))
    for question, answer in text.turns:
        keys = re.split(r", and |, ", asked(question))
        assert [part.strip(" ,.").split(": ") for part in answer] == [[k, known[k]] for k in keys]


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_variables_of_a_value_are_found_by_following_the_chain(seed, size) -> None:
    text = drawn("variables", seed, size)
    value_of: dict[str, str] = {}
    for line in text.needles:
        name, value = re.fullmatch(r"VAR (\w+) = (?:VAR )?(\w+)", line).groups()
        value_of[name] = value_of.get(value, value)
    number = re.search(r"\d{5}", "".join([text.turns[0][0], *text.turns[0][1]])).group()
    answers = [part.split()[-1] for _, parts in text.turns for part in parts]
    if text.turns[0][0] == "\n":  # hop by hop: the value first
        answers.remove(number)
        assert answers == [name for name, value in value_of.items() if value == number]
    for question, parts in text.turns:
        if value := re.search(r"\d{5}", question):
            own = [name for name, v in value_of.items() if v == value.group()]
            assert [part.strip() for part in parts] == own


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_a_reversed_assignment_is_answered_with_its_left_side(seed, size) -> None:
    text = drawn("reverse", seed, size)
    left_of = dict(re.fullmatch(r"VAR (\w+) = (?:VAR )?(\w+)", n).groups()[::-1]
                   for n in text.needles)  # fmt: skip
    assert len(left_of) == len(text.needles)
    assert text.turns
    for question, (answer,) in text.turns:
        assert left_of[question.strip("\n :")] == answer.strip()


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_facts_of_a_key_are_numbered_in_their_order(seed, size) -> None:
    text = drawn("count", seed, size)
    seen: Counter[str] = Counter()
    for before, answer in text.turns[::2]:
        key = re.search(r"([\w-]+) is: $", before).group(1)
        seen[key] += 1
        assert answer == [str(seen[key])]
    assert max(seen.values()) <= 4 and len(text.turns) >= 8


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_what_is_repeated_stands_in_front_word_for_word(seed, size) -> None:
    text = drawn("repeat", seed, size)
    question, copies = text.turns[0]
    assert len(copies) >= 1
    assert question.strip() + "".join(copies) in text.front


@given(seeds, sizes)
@settings(deadline=None, max_examples=20)
def test_common_and_frequent_words_are_counted_right(seed, size) -> None:
    text = drawn("common", seed, size)
    counts = Counter(re.findall(r"\d+\. (\D+?)(?=\s+\d+\.|\s*$)", text.front))  # "ad hoc" is one
    answers = [part.split(". ")[1] for part in text.turns[0][1]]
    rest = set(counts) - set(answers)
    assert min(counts[w] for w in answers) > max((counts[w] for w in rest), default=0)
    text = drawn("frequent", seed, size)
    counts = Counter(re.findall(r"\b[a-z]{6}\b", text.front.split("coded words. ")[1]))
    got = [counts[part.strip()] for part in text.turns[0][1]]
    assert got == sorted(counts.values(), reverse=True)[:3]


# -- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRILLS)
def test_answers_are_marked_and_nothing_else(writer, name) -> None:
    tokenizer = vocabulary.read(embedded.model_path()).tokenizer()
    n_answers = 0
    for seed in range(20):
        text = drawn(name, seed, 512)
        ids, kinds, starts = writer.sequence(Random(seed), text, 512)
        assert len(ids) == len(kinds) <= 512
        answers = [part for _, parts in text.turns for part in parts]
        got = [tokenizer.decode(ids[kinds == k].tolist()) for k in range(kinds.max(initial=0) + 1)]
        # A text that is too long loses its end, never its order.
        assert answers[: len(got) - 1] == got[:-1]
        assert "".join(answers).startswith("".join(got))
        assert (kinds[starts] < 0).all()
        assert set(kinds[kinds < 0]) <= {FILL, QUIET, NOISE_FILL}
        n_answers += len(got)
    assert n_answers >= 15 or name == "prose"


def test_batches_depend_on_the_seed_alone(writer) -> None:
    mix = dict.fromkeys(DRILLS, 1.0)
    a, b = (writer.batch(Random(5), mix, 4, 256) for _ in range(2))
    assert a.tasks == b.tasks
    for x, y in zip((a.tokens, a.positions, a.answers), (b.tokens, b.positions, b.answers),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(x, y)
    assert a.answers.max() == len(a.tasks) - 1
    other = writer.batch(Random(6), mix, 4, 256)
    assert (a.tokens != other.tokens).any()


@given(seeds, st.lists(st.integers(1, 255), unique=True).map(sorted))
def test_positions_jump_where_parts_begin_alone(seed, starts) -> None:
    positions = gaps(Random(seed), starts, 256)
    steps = np.diff(positions)
    assert positions[0] == 0 and positions[-1] < LONGEST
    assert (steps >= 1).all()
    assert set(np.flatnonzero(steps > 1) + 1) <= set(starts)


# -- tokenizer and file ----------------------------------------------------------------------


@pytest.mark.parametrize("name", DRILLS)
def test_llama_cpp_makes_the_same_tokens(writer, open_stock, name) -> None:
    tokenizer = vocabulary.read(embedded.model_path()).tokenizer()
    llm = open_stock(embedded.model_path(), n_ctx=256)
    for seed in range(5):
        ids, _, _ = writer.sequence(Random(seed), drawn(name, seed, 1024), 1024)
        text = tokenizer.decode(ids.tolist())
        assert llm.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).ids


def test_a_learned_vocabulary_has_names_and_single_digits() -> None:
    names = ["Alice", "Orson", "Jungle"]
    learned = vocabulary.learn(["In those days it was 1984 or 1984."] * 3, names, size=300)
    tokenizer = learned.tokenizer()
    assert learned.tokens[:3] == list(vocabulary.SPECIAL)
    assert tokenizer.encode(" Orson Jungle").tokens == ["ĠOrson", "ĠJungle"]
    assert tokenizer.encode("1984").tokens == list("1984")
    assert tokenizer.decode(tokenizer.encode("<|im_end|> \n é").ids) == "<|im_end|> \n é"
    assert tokenizer.encode("<|im_end|>").ids != [learned.tokens.index("<|im_end|>")]


def test_a_file_holds_what_was_written(tmp_path, open_stock) -> None:
    shape, weights = gguf_file.read(embedded.model_path())
    words = vocabulary.read(embedded.model_path())
    path = tmp_path / "copy.gguf"
    gguf_file.write(path, "copy", shape, weights, words)
    assert list(tmp_path.iterdir()) == [path]
    again, same = gguf_file.read(path)
    assert again == shape
    assert vocabulary.read(path) == words
    assert set(same) == set(weights)
    for name, x in weights.items():
        np.testing.assert_array_equal(same[name], x)
    llm = open_stock(path, n_ctx=256, logits_all=True)
    assert "A:" in llm.metadata["tokenizer.chat_template"]
    original = open_stock(embedded.model_path(), n_ctx=256, logits_all=True)
    for model in (llm, original):
        model.eval(list(range(100, 200)))
    np.testing.assert_array_equal(llm._scores[-1], original._scores[-1])


# -- PyTorch ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    """Skip what needs PyTorch where there is none."""
    return pytest.importorskip("torch", reason='PyTorch is missing: pip install ".[train]"')


def embedded_network(torch):
    """Load the embedded model into PyTorch."""
    from reference.network import Network, Shape

    shape, weights = gguf_file.read(embedded.model_path())
    return Network.of_weights(Shape(**shape), weights)


def test_logits_are_those_of_llama_cpp(torch, writer, open_stock) -> None:
    batch = writer.batch(Random(1), {"codes": 1.0, "needle": 1.0}, 1, 700)
    tokens = batch.tokens[0].tolist()
    llm = open_stock(embedded.model_path(), n_ctx=768, logits_all=True)
    llm.eval(tokens)
    network = embedded_network(torch)
    with torch.no_grad():
        ids = torch.tensor([tokens])
        logits = network.logits(network(ids, torch.arange(len(tokens))[None]))[0].numpy()
    ours = np.array(llm.scores[: len(tokens)])
    assert np.abs(ours - logits).max() < LOGIT_TOLERANCE
    assert (ours.argmax(-1) == logits.argmax(-1)).mean() >= 0.99


def test_chunked_attention_is_attention(torch) -> None:
    from reference.attention import attend

    torch.manual_seed(0)
    for t in (5, 128, 300):
        q = torch.randn(2, 4, t, 16, requires_grad=True)
        k, v = (torch.randn(2, 2, t, 16, requires_grad=True) for _ in range(2))
        up = torch.randn(2, 4, t, 16)
        dense = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True
        )
        torch.testing.assert_close(attend(q, k, v), dense, rtol=1e-4, atol=1e-5)
        ours = torch.autograd.grad(attend(q, k, v), (q, k, v), up)
        theirs = torch.autograd.grad(dense, (q, k, v), up)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_bias_stands_for_keys_that_come_several_times(torch) -> None:
    from reference.attention import attend

    torch.manual_seed(1)
    t, times = 200, torch.randint(1, 4, (2, 200))
    q = torch.randn(2, 4, t, 16, requires_grad=True)
    k, v = (torch.randn(2, 2, t, 16, requires_grad=True) for _ in range(2))
    up = torch.randn(2, 4, t, 16)
    dense = []
    for i in range(2):
        repeated = torch.arange(t).repeat_interleave(times[i])
        mask = repeated[None] <= torch.arange(t)[:, None]
        k_i, v_i = (x[i][:, repeated].repeat_interleave(2, 0) for x in (k, v))
        dense.append(torch.nn.functional.scaled_dot_product_attention(q[i], k_i, v_i, mask))
    dense = torch.stack(dense)
    ours = attend(q, k, v, times.log())
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5)
    mine = torch.autograd.grad(ours, (q, k, v), up)
    for a, b in zip(mine, torch.autograd.grad(dense, (q, k, v), up), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_inserted_layers_change_nothing_at_first(torch) -> None:
    from reference.network import deepen

    network = embedded_network(torch)
    tokens, positions = torch.arange(50, 90)[None], torch.arange(40)[None]
    with torch.no_grad():
        before = network(tokens, positions)
        deeper = deepen(network, [1, 1, 3])
        assert deeper.shape.n_layers == len(deeper.blk) == network.shape.n_layers + 3
        torch.testing.assert_close(deeper(tokens, positions), before, rtol=0, atol=0)


def test_muon_steps_are_nearly_orthogonal(torch) -> None:
    from reference.muon import orthogonal

    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 32, 64)))
    assert 0.6 < values.min() and values.max() < 1.3


def tiny_trainer(writer, seed: int = 0):
    """A training of a network with one layer."""
    import torch
    from reference.network import Network, Shape
    from reference.training import Plan, Trainer

    torch.manual_seed(seed)
    network = Network(Shape(n_layers=1, d=64, d_ff=64, n_heads=2, n_kv_heads=1, head_dim=32))
    sizes = {256: 0.5, 512: 0.5}
    return Trainer(network, writer, Plan(4, seed, tokens=512, sizes=sizes, diluted=4096))


@given(seeds, sizes)
@settings(max_examples=200, deadline=None)
def test_short_texts_stand_for_long_ones(torch, seed, size) -> None:
    from reference.training import MOST_DILUTED, Plan

    plan, rng = Plan(4, sizes={64: 1, size: 1}, diluted=4096, tokens=1024), Random(seed)
    assert plan.draw_size(rng, 0) in (64, min(size, 1024))
    assert 1 <= plan.draw_dilution(rng, size) <= max(1, min(MOST_DILUTED, 4096 / size))
    assert Plan(4).draw_dilution(rng, size) == 1


def test_a_stopped_training_goes_on_as_if_it_had_not(torch, writer, tmp_path) -> None:
    straight, halted = tiny_trainer(writer), tiny_trainer(writer)
    for _ in range(2):
        straight.advance()
        halted.advance()
    halted.save(tmp_path / "checkpoint.npz")
    resumed = tiny_trainer(writer, seed=1)
    with pytest.raises(ValueError, match="does not fit"):
        embedded_trainer = tiny_trainer(writer)
        embedded_trainer.others["another"] = embedded_trainer.others.pop("token_embd.weight")
        embedded_trainer.load(tmp_path / "checkpoint.npz")
    resumed.plan = straight.plan
    resumed.load(tmp_path / "checkpoint.npz")
    for _ in range(2):
        seen, again = straight.advance(), resumed.advance()
        assert seen == again
    for name, x in straight.network.weights().items():
        np.testing.assert_array_equal(x, resumed.network.weights()[name])


def test_a_log_tells_of_no_step_twice(torch, writer, tmp_path) -> None:
    from reference.training import run

    run(tiny_trainer(writer), tmp_path, log_every=1, save_every=4)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 5}\n')
    resumed = tiny_trainer(writer)
    resumed.load(tmp_path / "checkpoint.npz")
    run(resumed, tmp_path, log_every=1, save_every=4)
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]
    assert [row["start"] for row in rows if "start" in row] == [0, 4]


def test_the_script_trains_from_nothing_and_llama_cpp_reads_it(
    torch, tmp_path, monkeypatch, open_stock
) -> None:
    command = ["--out", str(tmp_path), "--steps", "2", "--tokens", "256", "--layers", "1"]
    command += ["--sizes", '{"128": 1}', "--diluted", "512"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command, "--threads", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert {p.name for p in tmp_path.iterdir()} == {
        "log.jsonl", "checkpoint.npz", "retr-2m-f16.gguf"
    }  # fmt: skip
    llm = open_stock(tmp_path / "retr-2m-f16.gguf", n_ctx=256)
    names = embedded.names()
    for word in names["first"][:20] + names["last"][:20]:
        assert len(llm.tokenize(f" {word}".encode(), add_bos=False)) == 1
    assert llm.create_completion(" Q:", max_tokens=2)["usage"]["completion_tokens"] >= 1
