"""Chat templates: rendering, and what a template or a chat may not do."""

import datetime
import json

import pytest

from gkd.vocabularies import vocabularies
from gkd.vocabularies.chat_templates import ChatFormat, ChatTemplate, chat_template_of, render_chat
from tests.vocabularies.tokenizer_folders import CHATML, byte_bpe

HELLO = [{"role": "user", "content": "Hi"}]


def test_chatml_with_and_without_the_generation_prompt():
    assert render_chat(CHATML, HELLO) == "<|im_start|>user\nHi<|im_end|>\n"
    end = "<|im_start|>assistant\n"
    assert render_chat(CHATML, HELLO, True) == f"<|im_start|>user\nHi<|im_end|>\n{end}"


def test_templates_see_special_tokens_variables_and_the_functions_of_transformers():
    template = ChatTemplate("folder", "{{ bos_token }}{{ x }}", (("bos_token", "<s>"),))
    assert render_chat(template, HELLO, x=2) == "<s>2"
    blocks = (
        "{% if true %}\n  {% for i in range(3) %}\n{{ i }}\n  {% break %}{% endfor %}{% endif %}"
    )
    assert render_chat(blocks, HELLO) == "0\n"
    text = "{% generation %}{{ messages[0] | tojson }}{% endgeneration %}{{ strftime_now('%%') }}"
    assert render_chat(text, [{"role": "user", "content": "é<"}]) == (
        '{"role": "user", "content": "é<"}%'
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", "fails: roles must alternate"),
        ("a\n{% if %}", "fails, line 2 of the template: Expected an expression"),
        ("{{ messages[0].role.name.x }}", "has no attribute 'name'"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str'.* is unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list'.* is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         "its loops have more than 1000000 steps"),
        ("{{ 'a' * 1000000000 }}", "too large"),
        ("{{ 10 ** 1000000000 }}", "too large"),
        ("{{ '%999999999d' % 1 }}", "pads too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "more than 10000000 characters"),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_escapes_is_one_line(template, message):
    with pytest.raises(ValueError, match=message) as error:
        render_chat(ChatTemplate("folder/chat_template.jinja", template), HELLO)
    assert str(error.value).startswith("folder/chat_template.jinja: the chat template fails")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a list of messages, each with role and content, is needed"),
        ("Hi", "a list of messages"),
        (None, "a list of messages"),
        ([1], "message 1 is 1: an object"),
        ([*HELLO, {"content": "x"}], "message 2 has no role; it has content"),
        ([{"role": "user"}], "message 1 has no content; it has role"),
        ([{"role": "bot", "content": "x"}], "role 'bot': use one of system, developer, user"),
        ([{"role": ["user"], "content": "x"}], "message 1 has role"),
        ([{"role": "user", "content": None}], "has content None: a text is needed"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a text is needed"),
    ],
)
def test_messages_without_roles_or_texts_are_refused(messages, message):
    with pytest.raises(ValueError, match=message) as error:
        render_chat(CHATML, messages)
    assert "\n" not in str(error.value)


def test_where_the_template_of_a_folder_is_read(tmp_path):
    def template():
        return chat_template_of(vocabularies.from_folder(str(tmp_path))).text

    byte_bpe(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no chat template .chat_template.jinja, or"):
        template()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "a"}))
    assert template() == "a"
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
    byte_bpe(tmp_path, chat_template=named)
    assert template() == "c"
    byte_bpe(tmp_path, chat_template=[{"name": "one", "template": "d"}])
    assert template() == "d"
    byte_bpe(tmp_path, chat_template=[{"name": n, "template": n} for n in "xy"])
    several = chat_template_of(vocabularies.from_folder(str(tmp_path)))
    with pytest.raises(ValueError, match="has several chat templates, none named 'default'"):
        render_chat(several, HELLO)
    (tmp_path / "chat_template.jinja").write_text("e")
    assert template() == "e"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="chat_template.jinja is not UTF-8"):
        template()
    (tmp_path / "chat_template.jinja").unlink()
    byte_bpe(tmp_path, chat_template=7)
    with pytest.raises(ValueError, match="chat_template is 7: a text of at most"):
        template()


def test_a_vocabulary_of_no_folder_has_no_template():
    with pytest.raises(FileNotFoundError, match="the vocabulary has no chat template"):
        chat_template_of(vocabularies.byte_level())


@pytest.mark.parametrize("name", ["template", "messages", "add_generation_prompt", "date"])
def test_options_cannot_replace_what_the_task_sets(name):
    with pytest.raises(ValueError, match=f"CHAT_OPTIONS has '{name}', which the task itself sets"):
        ChatFormat(ChatTemplate("folder", CHATML), options=((name, False),))


def test_prompts_of_a_task_are_the_same_on_every_day():
    """Else a run could not be continued tomorrow; a chat is told today's date."""
    template = ChatTemplate("folder", "{{ strftime_now('%d %b %Y') }}")
    assert ChatFormat(template).render(["Hi"]) == ["26 Jul 2024"]
    days = [render_chat(template, HELLO)]
    days.insert(0, datetime.datetime.now().strftime("%d %b %Y"))
    days.append(datetime.datetime.now().strftime("%d %b %Y"))
    assert days[1] in (days[0], days[2])


def test_a_prompt_becomes_one_user_message():
    template = ChatTemplate("folder", CHATML + "{{ thinking }}")
    plain = ChatFormat(template).render(["Hi"])
    assert plain == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    answer = ChatFormat(template, "Be brief.", (("thinking", "no"),)).render(["Hi", "Ho"])[1]
    assert answer == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHo<|im_end|>\n"
        "<|im_start|>assistant\nno"
    )
