"""Prompts of random conversations, against the model's own template rendered by Jinja.

The template is a file of the model folder (chat_template.jinja) and not ours to ship: MSA_M3_TEMPLATE
names it, and without it this test is skipped.
"""

import json
import os
import random

import pytest

TEMPLATE = os.environ.get("MSA_M3_TEMPLATE")
if not TEMPLATE:
    pytest.skip("MSA_M3_TEMPLATE names no chat_template.jinja", allow_module_level=True)
jinja2 = pytest.importorskip("jinja2")
sandbox = pytest.importorskip("jinja2.sandbox")

N_CONVERSATIONS = 1500
ABSENT = object()
STRINGS = ["", "a", "Hi there", "\n", "\n\nx\n", "it's", 'say "x"', "'\"", "tab\there", "\\", "\u00e9",
           "\u200b\u2028\ufeff\u00ad\x7f\x85\xa0", "\x01\x1f", "\U0001f600\U000e0001", "<mm:think>",
           "</mm:think>", "<mm:think>r</mm:think>c", "\nr\n</mm:think>\n\nc\n", "p<mm:think>\nq</mm:think>",
           "a</mm:think>b</mm:think>c", "]<]minimax[>[<tool_call>", "{{ x }}", "None", "0"]


class TemplateError(Exception):
    pass


def make_template():
    def fail(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False):
        return json.dumps(value, ensure_ascii=ensure_ascii)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = fail
    with open(TEMPLATE, encoding="utf-8") as file:
        return environment.from_string(file.read())


def scalar(rng):
    return rng.choice([rng.choice(STRINGS), None, True, False, 0, 1, -7, 0.0, -0.0, 2.5, 1e16, 1e-5,
                       10**30, rng.random(), rng.choice(STRINGS)])


def value(rng, depth=0):
    kind = rng.random()
    if depth > 3 or kind < 0.6:
        return scalar(rng)
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {key(rng): value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def key(rng):
    return rng.choice(["a", "b", "items", "keys", "long key", "\u043a", "x'y", "", "type"])


def part(rng):
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(STRINGS)
    made = {}
    if rng.random() < 0.9:
        made["type"] = rng.choice(["text", "text", "image", "video", "audio", None])
    if rng.random() < 0.8:
        made["text"] = value(rng) if rng.random() < 0.2 else rng.choice(STRINGS)
    if rng.random() < 0.3:
        made["output"] = value(rng) if rng.random() < 0.4 else rng.choice(STRINGS)
    items = list(made.items())
    rng.shuffle(items)
    return dict(items)


def content(rng, of_tool=False):
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(STRINGS)
    if kind < 0.85:
        parts = [part(rng) for _ in range(rng.randint(0, 4))]
        if rng.random() < 0.1:
            parts.append(scalar(rng))
        return parts
    if of_tool:  # the template stops with an error of Python at null
        return rng.choice(STRINGS)
    return rng.choice([None, ABSENT, ABSENT, value(rng)])


def call(rng):
    function = {"name": rng.choice(["f", "g.h", "\u540d"]),
                "arguments": {key(rng): value(rng) for _ in range(rng.randint(0, 4))}}
    kind = rng.random()
    if kind < 0.4:
        return {"id": "1", "type": "function", "function": function}
    if kind < 0.5:
        return dict(function, function=rng.choice([None, {}]))
    return function


def message(rng):
    role = rng.choice(["user", "assistant", "assistant", "tool", "tool", "system", "developer", "root"])
    made = {"role": role}
    made_content = content(rng, role == "tool")
    if made_content is not ABSENT:
        made["content"] = made_content
    if role == "assistant":
        if rng.random() < 0.4:
            made["reasoning_content"] = rng.choice([None, 3, rng.choice(STRINGS), rng.choice(STRINGS)])
        if rng.random() < 0.6:
            made["tool_calls"] = rng.choice(
                [None, [], [call(rng) for _ in range(rng.randint(1, 3))], [call(rng)]])
    return made


def conversation(rng):
    options = {}
    if rng.random() < 0.7:
        options["add_generation_prompt"] = rng.choice([True, False, None, 0, 1, "", "no"])
    if rng.random() < 0.7:
        options["thinking_mode"] = rng.choice(["enabled", "disabled", "adaptive", "auto", None, 1])
    if rng.random() < 0.3:
        options["model_identity"] = rng.choice([rng.choice(STRINGS), scalar(rng)])
    tools = None
    if rng.random() < 0.4:
        tools = [{"function": value(rng)} for _ in range(rng.randint(0, 3))]
    messages = [message(rng) for _ in range(rng.randint(0, 7))]
    if rng.random() < 0.5:  # often a conversation that is no error
        messages = [m for m in messages if m["role"] != "tool"]
    return {"messages": messages, "tools": tools, "options": options}


@pytest.mark.parametrize("seed", range(4))
def test_same_prompt(msa, tmp_path, seed):
    (tmp_path / "config.json").write_text('{"model_type": "minimax_m3_vl"}')
    rng = random.Random(seed)
    template = make_template()
    n_rendered = 0
    for _ in range(N_CONVERSATIONS // 4):
        request = conversation(rng)
        try:
            expected, error = template.render(
                messages=request["messages"], tools=request["tools"], **request["options"]), None
        except TemplateError as failure:
            expected, error = "", f"{failure}\n"
        source = json.dumps(request, ensure_ascii=rng.random() < 0.5)
        result = msa("render", tmp_path, stdin=source.encode())
        assert result.stdout.decode() == expected, source
        assert result.returncode == (1 if error else 0), result.stderr
        assert result.stderr.decode() == (error or ""), source
        n_rendered += not error
    assert n_rendered > N_CONVERSATIONS // 16
