"""Formulas as MathML, which browsers draw themselves: pages need no script from elsewhere and read well offline."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def inline(translator, node):
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block(translator, node):
    translator.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def mathml(node, *, as_block: bool) -> str:
    formula = re.sub(r"\\[Bb]igg?[lr]?(?![A-Za-z])", "", node.astext())  # browsers size parentheses themselves
    try:
        return str(latex2mathml.tex2mathml(formula, as_block=as_block))
    except MathError as error:
        log.warning("formula cannot be read: %s", error, location=node)
        return node.astext()


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
