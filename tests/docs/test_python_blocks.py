"""Every Python block of the documentation runs and prints what its comments say."""

import contextlib
import io
import re
import sys

import pytest

from tests.docs import pages

PAGES = [page for page in pages.names() if pages.blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names = {"__name__": "__main__"}
    for block in pages.blocks(page, "python"):
        if block.file:  # a module that later blocks import
            (tmp_path / block.file).write_text(block.text)
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, page, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)  # noqa: S102
        text = " ".join(printed.getvalue().split())
        for comment in re.findall(r"^print\(.*\)  # (.+)$", block.text, flags=re.MULTILINE):
            for part in comment.split("…"):  # an ellipsis stands for anything
                assert " ".join(part.split()) in text, f"{page}:{block.line}: {comment}"
